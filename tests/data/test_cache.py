"""The cache of decoded pixels. `test_the_second_time_nothing_is_decoded` is the example to read first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from deepreduce.data import cache
from deepreduce.data.dataset import Raw
from deepreduce.data.split import Split


def raw(seed: int = 0, *, test: bool = True) -> Raw:
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        return Split(
            torch.randint(0, 256, (count, 3, 4, 5), dtype=torch.uint8, generator=generator),
            torch.randint(0, 2, (count,), generator=generator),
        )

    return Raw(("cat", "dog"), split(30), split(8) if test else None, ("two palettes",))


def never() -> Raw:
    raise AssertionError("decoded although it was cached")


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("test", [True, False])
def test_the_second_time_nothing_is_decoded(cache_folder: Path, test: bool) -> None:
    made = raw(test=test)
    first, notes = cache.fetch(None, ["a"], lambda: made)
    second, more = cache.fetch(None, ["a"], never)
    assert notes == more == ()
    assert first.digest() == second.digest() == made.digest()
    assert (second.classes, second.notes) == (made.classes, made.notes)
    assert (second.test is not None) == test
    assert only_file(cache_folder).suffix == ".safetensors"


def test_every_key_has_its_own_file(cache_folder: Path) -> None:
    cache.fetch(None, ["a"], raw)
    other, _ = cache.fetch(None, ["b"], lambda: raw(1))
    assert other.digest() == raw(1).digest()
    assert len(list(cache_folder.iterdir())) == 2


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list its mappings")
def test_pixels_are_mapped_from_the_file(cache_folder: Path) -> None:
    first, _ = cache.fetch(None, ["a"], raw)
    spans = [
        tuple(int(edge, 16) for edge in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(only_file(cache_folder).name)
    ]
    for split in (first.train, first.test):
        assert split is not None
        assert any(start <= split.images.data_ptr() < end for start, end in spans)


def test_writing_to_a_mapped_tensor_does_not_reach_the_file() -> None:
    first, _ = cache.fetch(None, ["a"], raw)
    first.train.images.zero_()
    assert cache.fetch(None, ["a"], never)[0].digest() == raw().digest()


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_header_length(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def resave(path: Path, **changes: str) -> None:
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata=header | changes)


def damage_classes(path: Path) -> None:
    resave(path, classes='["dog", "cat"]')


def damage_json(path: Path) -> None:
    resave(path, classes="not json")


def damage_other_key(path: Path) -> None:
    resave(path, key="0" * 64)


def damage_type(path: Path) -> None:
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = {name: tensor.to(torch.int32) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata=header)


def damage_missing(path: Path) -> None:
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({"train.images": torch.zeros(2, 3, 4, 5, dtype=torch.uint8)}, path, metadata=header)


def damage_foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_empty,
        damage_pixel,
        damage_header_length,
        damage_classes,
        damage_json,
        damage_other_key,
        damage_type,
        damage_missing,
        damage_foreign,
    ],
    ids=lambda function: function.__name__,
)
def test_a_damaged_file_is_rebuilt_and_noted(cache_folder: Path, damage: object) -> None:
    cache.fetch(None, ["a"], raw)
    damage(only_file(cache_folder))  # type: ignore[operator]
    rebuilt, notes = cache.fetch(None, ["a"], raw)
    assert rebuilt.digest() == raw().digest()
    assert len(notes) == 1
    assert "unusable" in notes[0]
    assert str(cache_folder) not in notes[0]
    assert cache.fetch(None, ["a"], never)[1] == ()


def test_a_cache_that_is_no_folder_costs_only_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made, notes = cache.fetch(tmp_path / "file", ["a"], raw)
    assert made.digest() == raw().digest()
    assert "held in memory" in notes[0]
    assert str(tmp_path) not in notes[0]


def test_a_full_disk_costs_only_a_note_and_leaves_nothing(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"the part that fitted")
        raise SafetensorError(f"I/O error: No space left on device (os error 28) at path {path}")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    made, notes = cache.fetch(None, ["a"], raw)
    assert made.digest() == raw().digest()
    assert "No space left on device" in notes[0]
    assert str(cache_folder) not in notes[0]
    assert list(cache_folder.iterdir()) == []


def test_a_real_limit_on_file_size_costs_only_a_note(cache_folder: Path) -> None:
    pytest.importorskip("resource", reason="this system has no limit on file sizes")
    code = (
        "import resource, numpy as np; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "import torch; from deepreduce.data import cache; from deepreduce.data.dataset import Raw; from deepreduce.data import Split;"
        "s = Split(torch.zeros(100, 3, 8, 8, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64));"
        "print(cache.fetch(None, ['a'], lambda: Raw(('a', 'b'), s, None))[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "held in memory" in done.stdout
    assert list(cache_folder.iterdir()) == []


def test_a_build_that_fails_leaves_nothing(cache_folder: Path) -> None:
    def fails() -> Raw:
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        cache.fetch(None, ["a"], fails)
    assert not cache_folder.exists()


def test_old_leftovers_of_killed_processes_go_and_young_ones_stay(cache_folder: Path) -> None:
    cache.fetch(None, ["a"], raw)
    path = only_file(cache_folder)
    path.unlink()
    old, young = (cache_folder / f".{path.stem}.{name}.tmp" for name in ("1-old", "2-young"))
    for leftover in (old, young):
        leftover.write_bytes(b"part")
    os.utime(old, (0, 0))
    cache.fetch(None, ["a"], raw)
    assert not old.exists()
    assert young.exists()


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("DEEPREDUCE_CACHE", "/y")
    assert cache.default_folder() == Path("/y")
    monkeypatch.delenv("DEEPREDUCE_CACHE")
    assert cache.default_folder() == Path("/x/deepreduce")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/z")
    assert cache.default_folder() == Path("/z/.cache/deepreduce")


def test_the_digest_sees_every_part() -> None:
    made = raw()
    assert made.test is not None
    flipped = made.train.images.clone()
    flipped[0, 0, 0, 0] ^= 1
    others = [
        Raw(("dog", "cat"), made.train, made.test, made.notes),
        Raw(made.classes, made.train, made.test, ()),
        Raw(made.classes, made.train, None, made.notes),
        Raw(made.classes, Split(flipped, made.train.labels), made.test, made.notes),
        Raw(made.classes, Split(made.train.images, 1 - made.train.labels), made.test, made.notes),
        Raw(made.classes, Split(made.train.images.transpose(2, 3).contiguous(), made.train.labels), made.test),
    ]
    digests = {made.digest(), *(other.digest() for other in others)}
    assert len(digests) == 7
    assert np.all([len(digest) == 64 for digest in digests])
