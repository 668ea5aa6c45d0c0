"""The two files of a network: what is in them, who can read them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from deepreduce.errors import DataError, DeepReduceError, RecipeError, RunError
from deepreduce.private.deployment import About, load_client, load_server, make_model, save_model
from deepreduce.private.protocol import PROTOCOL
from deepreduce.private.twin import Twin

from .parties import pixels, small, tiny


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return save_model(tiny(), tmp_path / "out")


def about_of(path: Path) -> dict[str, Any]:
    return json.loads(load_file(path)["about"].tobytes())


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write a file whose checksum fits, as somebody would who changes one on purpose."""
    found = hashlib.sha256()
    for name in sorted(set(arrays) - {"checksum"}):
        found.update(f"{name} {len(arrays[name])}\n".encode() + arrays[name].tobytes())
    save_file(arrays | {"checksum": np.frombuffer(found.digest(), np.uint8)}, path)
    return path


def with_about(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a file anew with another description."""
    arrays = load_file(path)
    value = json.loads(arrays["about"].tobytes())
    arrays["about"] = np.frombuffer(json.dumps(change(value)).encode(), np.uint8)
    return written(path, arrays)


def test_example_both_files_come_back(files: tuple[Path, Path]) -> None:
    server, client = files
    held, public = load_server(server), load_client(client)
    assert held.client.digest == public.digest == tiny().client.digest
    assert held.client.about == public.about == tiny().client.about
    assert held.client.weight_bits == public.weight_bits == tiny().client.weight_bits
    images = pixels(5, 1, 2, seed=3)
    floats = public.normalise(images)
    assert np.allclose(floats, (images / 255 - 0.5) / 0.25)
    expected = Twin(tiny().program).run(floats)
    assert np.array_equal(Twin(held.program).run(floats).logits, expected.logits)


def test_only_the_owner_reads_the_servers_file_and_clients_get_no_weight(files: tuple[Path, Path]) -> None:
    server, client = files
    assert stat.S_IMODE(server.stat().st_mode) == 0o600
    assert sorted(path.name for path in server.parent.iterdir()) == ["client.safetensors", "server.safetensors"]
    assert set(load_file(client)) == {"program", "about", "checksum"}
    weight = next(own.weight for own in tiny().program.weights.values() if own.weight is not None)
    content = client.read_bytes()
    for kind in (np.int8, np.int16, np.int32, np.int64):
        if np.iinfo(kind).max >= np.abs(weight).max():
            assert weight.astype(kind).tobytes() not in content
    assert (
        weight.astype(np.int32).tobytes() in server.read_bytes()
        or weight.astype(np.int16).tobytes() in server.read_bytes()
    )


def test_the_umask_does_not_open_the_servers_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server, _ = save_model(tiny(), tmp_path / "open")
    finally:
        os.umask(before)
    assert stat.S_IMODE(server.stat().st_mode) == 0o600


def test_a_servers_file_that_others_may_read_is_not_served(files: tuple[Path, Path]) -> None:
    server, client = files
    assert load_server(server, serving=True).client.digest == tiny().client.digest
    for mode in (0o640, 0o604, 0o620, 0o610, 0o777):
        server.chmod(mode)
        with pytest.raises(RunError, match=rf"owner alone. Got: mode {mode:04o}. Do: chmod 600 '{server}'.* Where: "):
            load_server(server, serving=True)
        load_server(server)  # an estimate of it, or an export, tells nobody
    with pytest.raises(RecipeError, match="must be readable"):
        load_server(server.with_name("missing"), serving=True)
    with pytest.raises(RecipeError, match=r"the server's file"):  # and no alarm of secrets that it does not hold
        load_server(client, serving=True)
    assert client.stat().st_mode & 0o044 and load_client(client)  # that one is public


def test_the_digest_names_what_both_parties_must_have_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    client = tiny().client
    assert len(client.digest) == 32 and client.digest != small().client.digest
    assert replace(client, weight_bits=client.weight_bits + 1).digest != client.digest
    for change in ({"mean": (0.51,)}, {"std": (0.26,)}, {"classes": ("ant", "cat", "bee")}):
        assert replace(client, about=replace(client.about, **change)).digest != client.digest
    # What people alone read, and may have translated.
    assert replace(client, about=replace(client.about, network="other", relus=9)).digest == client.digest
    # Bundles of another version lie in another folder.
    monkeypatch.setattr("deepreduce.private.deployment.PROTOCOL", PROTOCOL + 1)
    assert replace(client).digest != client.digest


def test_every_damaged_byte_of_the_weights_is_found(files: tuple[Path, Path]) -> None:
    server, content = files[0], files[0].read_bytes()
    weights, checksum = (load_file(server)[name].tobytes() for name in ("weights", "checksum"))
    last_of_weights = content.index(weights) + len(weights) - 1
    for place in (last_of_weights, content.index(checksum), content.index(b'"mean"') + 9):
        server.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(
            RecipeError, match=r"a checksum that does not fit. Do: export it again. Where: .*server\.saf"
        ):
            load_server(server)


def test_a_file_of_an_earlier_release_says_so(files: tuple[Path, Path]) -> None:
    for path, load in zip(files, (load_server, load_client), strict=True):
        arrays = load_file(path)
        del arrays["checksum"]
        save_file(arrays, path)
        with pytest.raises(RecipeError, match="earlier release. Do: export it again"):
            load(path)


def test_weights_fit_the_bits_that_are_declared() -> None:
    model = tiny()
    bits = model.client.weight_bits
    largest = max(int(np.abs(own.weight).max()) for own in model.program.weights.values() if own.weight is not None)
    assert 2 ** (bits - 2) <= largest <= 2 ** (bits - 1)


def test_weights_beyond_the_declared_bits_are_refused(files: tuple[Path, Path]) -> None:
    server, _ = files
    with_about(server, lambda value: value | {"weight_bits": tiny().client.weight_bits - 1})
    with pytest.raises(RecipeError, match=r"weights of \d+ bits where \d+ are declared"):
        load_server(server)


def test_a_file_of_the_other_kind_is_refused(files: tuple[Path, Path]) -> None:
    server, client = files
    with pytest.raises(RecipeError, match=r"a client's file.*Do: take client\.safetensors"):
        load_client(server)
    with pytest.raises(RecipeError, match=r"the server's file.*Do: take server\.safetensors"):
        load_server(client)


def test_weights_of_another_program_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    other, _ = save_model(small(), tmp_path / "other")
    arrays = load_file(files[0])
    arrays["weights"] = load_file(other)["weights"]
    written(files[0], arrays)
    with pytest.raises(RecipeError, match="another program"):
        load_server(files[0])


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("weights")
    (tmp_path / "huge-header").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    for name in ("missing", "pipe", "empty", "text", "huge-header", "."):
        with pytest.raises(RecipeError, match=r"Got: .*Do: "):
            load_client(tmp_path / name)


def test_safetensors_of_every_other_type_are_refused(tmp_path: Path) -> None:
    for kind in ("BF16", "F8_E4M3", "F8_E5M2", "F16", "F64", "I64", "BOOL", "U16", "C64", "F4"):
        header = json.dumps({"program": {"dtype": kind, "shape": [4], "data_offsets": [0, 32]}}).encode()
        for length in (2, 4, 8, 16, 32):
            own = header.replace(b"32]", f"{length}]".encode())
            (tmp_path / "file").write_bytes(len(own).to_bytes(8, "little") + own + bytes(length))
            with pytest.raises(RecipeError):
                load_client(tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "deepreduce.server"},
        {"version": 1},
        {"version": "2"},
        {"network": 3},
        {"relus": "8"},
        {"classes": ["a", "b"]},
        {"classes": "abc"},
        {"mean": [0.5, 0.5]},
        {"mean": ["0.5"]},
        {"std": [0.0]},
        {"std": [-1.0]},
        {"std": [1e400]},
        {"weight_bits": 1},
        {"weight_bits": 33},
        {"weight_bits": True},
        {"weight_bits": None},
    ],
    ids=str,
)
def test_a_wrong_description_is_refused(files: tuple[Path, Path], change: dict[str, Any]) -> None:
    path = with_about(files[1], lambda value: value | change)
    with pytest.raises(RecipeError, match=r"Got: .*Do: .*Where: "):
        load_client(path)


def test_a_description_that_is_none_is_refused(files: tuple[Path, Path]) -> None:
    for value in ([], "text", None, 3):
        with pytest.raises(RecipeError):
            load_client(with_about(files[1], lambda _, value=value: value))
        save_model(tiny(), files[1].parent, replace=True)
    for name in about_of(files[1]):
        with pytest.raises(RecipeError):
            load_client(with_about(files[1], lambda value, name=name: {k: v for k, v in value.items() if k != name}))
        save_model(tiny(), files[1].parent, replace=True)


def test_a_description_with_a_key_twice_or_a_nan_is_refused(files: tuple[Path, Path]) -> None:
    arrays = load_file(files[1])
    text = arrays["about"].tobytes().decode()
    for other in (text.replace('{"format"', '{"network":"evil","format"', 1), text.replace("{", '{"x":NaN,', 1)):
        written(files[1], {**arrays, "about": np.frombuffer(other.encode(), np.uint8)})
        with pytest.raises(RecipeError, match="stands twice|no number"):
            load_client(files[1])


def test_names_cannot_harm_a_terminal(files: tuple[Path, Path]) -> None:
    names = ["\x1b[2Jant", "b\ne\u202ee", "\x9b31mcat"]
    found = load_client(with_about(files[1], lambda value: value | {"classes": names, "network": "\x1b]0;t\x07net"}))
    assert found.about.classes == ("ant", "b ee", "cat") and found.about.network == "net"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_client_file_is_refused_or_harmless(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not (folder / "client.safetensors").exists():
        save_model(tiny(), folder)
    content = bytearray((folder / "client.safetensors").read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    (folder / "changed").write_bytes(content)
    try:
        found = load_client(folder / "changed")
    except DeepReduceError:
        return
    assert found.digest == tiny().client.digest and found.about == tiny().client.about  # white space of the header


def test_images_of_another_form_are_refused() -> None:
    for wrong in (pixels(1, 1, 3), pixels(1, 3, 2), pixels(1, 1, 2)[0], pixels(1, 1, 2).astype(float)):
        with pytest.raises(DataError, match=r"uint8 \[n, 1, 2, 2\].*Got: .*Do: resize"):
            tiny().client.normalise(wrong)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError):
        save_model(tiny(), tmp_path / "file" / "out")


def test_another_network_in_the_folder_is_replaced_only_on_request(files: tuple[Path, Path]) -> None:
    before = [path.read_bytes() for path in files]
    save_model(tiny(), files[0].parent)  # the same network once more is no loss
    for missing in files:  # either file is enough to refuse
        missing.unlink()
        with pytest.raises(RunError, match=r"one network. Got: files of another. Do: .*--replace.* Where: "):
            save_model(small(), files[0].parent)
        assert not missing.exists()
        save_model(tiny(), files[0].parent)
    assert [path.read_bytes() for path in files] == before
    save_model(small(), files[0].parent, replace=True)
    assert load_server(files[0]).client.digest == load_client(files[1]).digest == small().client.digest
    assert files[0].stat().st_mode & 0o777 == 0o600


def test_a_model_is_made_from_any_program() -> None:
    about = About("again", 8, ("a", "b", "c"), (0.0,), (1.0,))
    made = make_model(tiny().program, about)
    assert made.client.about == about and made.client.digest != tiny().client.digest
    assert "weight=" not in repr(made) and "Weights(" not in repr(made)
