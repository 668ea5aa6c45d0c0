"""Files are written whole or not at all, and read with suspicion."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepreduce import _files
from deepreduce._files import (
    append_line,
    check_format,
    open_to_others,
    read_json,
    read_lines,
    replacing,
    sha256_of,
    write_bytes,
    write_json,
)
from deepreduce.errors import RunError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_an_example(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "front.json"
    write_json(path, {"format": "x", "accuracy": 0.5, "name": "é"})
    assert read_json(path) == {"format": "x", "accuracy": 0.5, "name": "é"}
    assert path.read_text(encoding="utf-8") == '{\n "format": "x",\n "accuracy": 0.5,\n "name": "é"\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["front.json"]


@given(value=st.dictionaries(st.text(), values))
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full"), "free some space"),
        (OSError(errno.EROFS, "read-only"), "make the folder writable"),
        (RuntimeError("I/O error: No space left on device"), "free some space"),
    ],
)
def test_a_full_disk_says_so(tmp_path: Path, error: Exception, words: str) -> None:
    with pytest.raises(RunError, match=words) as caught, replacing(tmp_path / "weights"):
        raise error
    assert str(tmp_path / "weights") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), rename(self, to))[1])
    write_bytes(tmp_path / "file", b"x")
    assert order == ["fsync", "rename"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("stays")
    (tmp_path / "run.json").symlink_to(tmp_path / "precious")
    write_json(tmp_path / "run.json", {})
    assert (tmp_path / "precious").read_text() == "stays"
    assert not (tmp_path / "run.json").is_symlink()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "deploy").write_text("mine")
    with pytest.raises(RunError, match=r"Got: .*deploy is no folder\. Do: name another place"):
        write_json(tmp_path / "deploy" / "inner" / "file.json", {})
    assert (tmp_path / "deploy").read_text() == "mine"


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "file.json").mkdir()
    with pytest.raises(RunError, match=r"Got: Is a directory\. Do: name another place"):
        write_json(tmp_path / "file.json", {})


def test_a_place_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="name too long"):
        write_json(tmp_path / ("a" * 300) / "inside" / "file.json", {})
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0)
        with pytest.raises(RunError, match="make the folder writable, and run"):
            write_json(tmp_path / "locked" / "inside" / "file.json", {})


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="written whole"):
        write_json(tmp_path / "file" / "inside.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="written whole"):
        write_json(tmp_path / "folder", {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_does_not_have_is_not_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(RunError, match="must be finite"):
        write_json(tmp_path / "file", {"loss": [number]})
    with pytest.raises(RunError, match="must be finite"):
        append_line(tmp_path / "file", {"loss": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "one JSON object"),
        (b"[1]", "a list, not an object"),
        (b"\xff\xfe", "utf-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": {"b": 1, "b": 1}}', "twice"),
        (b"[" * 50_000, "one JSON object"),
        (b'{"a": ' + b"1" * 5000 + b"}", "one JSON object"),
        (b'{"a": 1} {"a": 1}', "one JSON object"),
    ],
)
def test_what_is_no_json_object(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": "b" * 100})
    assert read_json(path)
    monkeypatch.setattr(_files, "_LARGEST_JSON_BYTES", 100)
    with pytest.raises(RunError, match="larger than 100 bytes"):
        read_json(path)


def test_a_missing_file_and_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must exist"):
        read_json(tmp_path / "nothing.json")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "zero"):
        with pytest.raises(RunError, match="no regular file"):
            read_json(path)


def test_format_and_version(tmp_path: Path) -> None:
    check_format({"format": "x", "version": 1}, "x", 1, tmp_path)
    for value in ({}, {"format": "x"}, {"format": "x", "version": 2}, {"format": "y", "version": 1}):
        with pytest.raises(RunError, match="format 'x', version 1"):
            check_format(value, "x", 1, tmp_path)


def test_sha256(tmp_path: Path) -> None:
    """The first test vector of FIPS 180-2."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(lines=st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=5))
def test_lines_come_back(tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("lines") / "history.jsonl"
    for line in lines:
        append_line(path, line)
    assert read_lines(path) == lines


@given(cut=st.integers(1, 40))
def test_a_line_that_a_crash_cut_short_hides_no_later_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "history.jsonl"
    for epoch in (1, 2, 3):
        append_line(path, {"epoch": epoch, "loss": 0.25})
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    whole = path.read_bytes().count(b"\n")
    assert [line["epoch"] for line in read_lines(path)][:whole] == [1, 2, 3][:whole]
    append_line(path, {"epoch": 9, "loss": 0.5})
    assert [line["epoch"] for line in read_lines(path)] == [*[1, 2, 3][:whole], 9]


def test_lines_of_a_damaged_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_lines(path) == []
    path.write_text('{"epoch": 1}\n[2]\n{"epoch": 3}\nnonsense\n{"epoch": 5}\n')
    assert read_lines(path) == [{"epoch": 1}, {"epoch": 3}]
    path.write_text('{"epoch": 1}\n' + "[" * 100_000 + "\n")
    assert read_lines(path) == [{"epoch": 1}]
    with pytest.raises(RunError, match="readable"):
        read_lines(tmp_path)
    with pytest.raises(RunError, match="history must be written"):
        append_line(tmp_path, {})


def test_one_line_is_one_json_value(tmp_path: Path) -> None:
    append_line(tmp_path / "h", {"text": "a\nb\u2028c"})
    assert json.loads((tmp_path / "h").read_text(encoding="utf-8")) == {"text": "a\nb\u2028c"}
    assert read_lines(tmp_path / "h") == [{"text": "a\nb\u2028c"}]


@pytest.mark.parametrize(("mode", "said"), [(0o600, ""), (0o700, ""), (0o644, "0644"), (0o610, "0610")])
def test_what_others_may_read_is_told_by_its_mode(tmp_path: Path, mode: int, said: str) -> None:
    path = tmp_path / "file"
    assert open_to_others(path) == ""
    path.touch()
    path.chmod(mode)
    assert open_to_others(path) == said


def test_ctrl_c_leaves_no_rest(tmp_path: Path) -> None:
    """What was begun may be hundreds of megabytes, and a network's weights."""
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "weights") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_is_private_is_so_from_its_first_moment_on(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        for private, mode in ((True, 0o600), (False, 0o666)):
            with replacing(tmp_path / "file", private=private) as temporary:
                assert temporary.stat().st_mode & 0o777 == mode
                temporary.write_bytes(b"secret")
            assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    finally:
        os.umask(old)
