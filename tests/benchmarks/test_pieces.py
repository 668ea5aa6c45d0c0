"""Packing and joining: exact, whatever the sizes; damage of any kind is refused before anything is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import join, pack

from deepreduce.errors import DataError, RunError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)) * 5)
    (folder / "deep" / "b.bin").write_bytes(b"b" * 700)
    (folder / "empty").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"stays behind")
    return folder


def test_example_a_folder_comes_out_as_it_went_in(folder: Path, tmp_path: Path) -> None:
    manifest = pack(folder, tmp_path / "pieces", most_bytes=600)
    assert [piece["bytes"] for piece in manifest["pieces"]] == [600, 600, 600, 180]
    assert [file["path"] for file in manifest["files"]] == ["a.bin", "deep/b.bin", "empty"]
    joined = join(tmp_path / "pieces", tmp_path / "out")
    assert joined == tmp_path / "out" / "images"
    assert {p.relative_to(joined): p.read_bytes() for p in joined.rglob("*") if p.is_file()} == {
        p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".hidden"
    }


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5), most=st.integers(1, 60))
def test_any_sizes(sizes: list[int], most: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    (tmp_path / "in").mkdir()
    for number, size in enumerate(sizes):
        (tmp_path / "in" / f"{number}").write_bytes(bytes((number + k) % 251 for k in range(size)))
    manifest = pack(tmp_path / "in", tmp_path / "pieces", most_bytes=most)
    assert all(piece["bytes"] <= most for piece in manifest["pieces"])
    joined = join(tmp_path / "pieces", tmp_path)
    assert [path.read_bytes() for path in sorted(joined.iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "in").iterdir())
    ]


def test_what_is_whole_is_not_written_again_and_what_is_not_is(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "pieces", most_bytes=600)
    joined = join(tmp_path / "pieces", tmp_path / "out")
    written = (joined / "a.bin").stat().st_mtime_ns
    for piece in (tmp_path / "pieces").glob("*.bin"):
        piece.rename(piece.with_suffix(".away"))
    assert join(tmp_path / "pieces", tmp_path / "out") == joined
    assert (joined / "a.bin").stat().st_mtime_ns == written
    for piece in (tmp_path / "pieces").glob("*.away"):
        piece.rename(piece.with_suffix(".bin"))
    (joined / "a.bin").write_bytes(b"changed")
    join(tmp_path / "pieces", tmp_path / "out")
    assert (joined / "a.bin").read_bytes() == (folder / "a.bin").read_bytes()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda pieces: (pieces / "piece-001.bin").unlink(), "no such file"),
        (lambda pieces: (pieces / "piece-001.bin").write_bytes(b"x" * 600), "another hash"),
        (lambda pieces: (pieces / "piece-003.bin").write_bytes(b""), "another hash"),
        (lambda pieces: _change(pieces, lambda m: m["files"][0].update(sha256="0" * 64)), "after joining"),
        (lambda pieces: _change(pieces, lambda m: m["files"][0].update(bytes=9999)), "fewer bytes"),
        (lambda pieces: _change(pieces, lambda m: m["files"][0].update(path="../../away")), "lead elsewhere"),
        (lambda pieces: _change(pieces, lambda m: m.update(folder="/away")), "lead elsewhere"),
        (lambda pieces: _change(pieces, lambda m: m.update(version=2)), "fields are missing"),
        (lambda pieces: _change(pieces, lambda m: m["pieces"][0].pop("sha256")), "fields are missing"),
        (lambda pieces: _change(pieces, lambda m: m.pop("files")), "KeyError"),
    ],
)
def test_damage_is_named_and_nothing_is_left(damage, words: str, folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "pieces", most_bytes=600)
    damage(tmp_path / "pieces")
    with pytest.raises(DataError, match=words):
        join(tmp_path / "pieces", tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists() and not (tmp_path / "away").exists()


def _change(pieces: Path, change) -> None:
    manifest = json.loads((pieces / "manifest.json").read_text())
    change(manifest)
    (pieces / "manifest.json").write_text(json.dumps(manifest))


def test_nothing_to_pack_and_nothing_to_join(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="files to pack"):
        pack(tmp_path / "empty", tmp_path / "pieces")
    with pytest.raises(RunError, match="must exist"):
        join(tmp_path / "empty", tmp_path / "out")
