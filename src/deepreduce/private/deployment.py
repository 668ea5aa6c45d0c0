"""A network as two files: one for the server, with the weights, and one for its clients, public.

Both are safetensors files, so nothing is unpickled:

* `program`: the public program (`program.files`), bytes.
* `about`: UTF-8 JSON: `format` ("deepreduce.client" or "deepreduce.server"), `version`, `network`, `relus`, `classes`
  (names), `mean` and `std` per channel for pixels in [0, 1], `weight_bits`.
* `weights`, in the server's file alone: the secret part of the program, bytes.
* `checksum`: SHA-256 of the other entries, 32 bytes. It finds what a disk or a copy has damaged, not what somebody has
  changed.

The digest of what both parties must have alike names the deployment: the version of the protocol, `program`,
`weight_bits`, `classes`, `mean` and `std`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .._files import open_to_others, replacing
from .._json import json_field, json_list, parse_json
from ..errors import DataError, RecipeError, RunError, printable, problem
from .program import Program, PublicProgram, program_from_bytes, public_from_bytes, public_to_bytes, weights_to_bytes
from .program.files import MAX_PUBLIC_BYTES, MAX_SECRET_BYTES
from .protocol import PROTOCOL
from .protocol.layout import Layout, make_layout

CLIENT, SERVER, VERSION = "deepreduce.client", "deepreduce.server", 2
CLIENT_FILE, SERVER_FILE = "client.safetensors", "server.safetensors"
_MAX_ABOUT_BYTES = 1 << 22


@dataclass(frozen=True)
class About:
    """What people and image readers need to know of a network. Public.

    Attributes:
        network: a name for people.
        relus: that it evaluates for one image.
        classes: names.
        mean, std: per channel, for pixels in [0, 1].
    """

    network: str
    relus: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ClientModel:
    """What a client knows.

    Attributes:
        public: the program.
        about: for people and image readers.
        weight_bits: bits of the integer weights with their sign: public, because it sets the size of the flood that
            hides them.
    """

    public: PublicProgram
    about: About
    weight_bits: int

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name the deployment."""
        about = self.about
        alike = [PROTOCOL, self.weight_bits, about.classes, about.mean, about.std]
        named = b"deepreduce deployment 3\n" + json.dumps(alike).encode() + b"\n"
        return hashlib.sha256(named + public_to_bytes(self.public)).digest()

    @cached_property
    def layout(self) -> Layout:
        """The layout that both parties compute."""
        return make_layout(self.public, weight_bits=self.weight_bits)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return images as the network takes them.

        Args:
            pixels: [images, channels, height, width], 0 to 255.

        Raises:
            DataError: they have another shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != self.public.input.shape:
            raise DataError(
                problem(
                    f"images are uint8 [n, {', '.join(map(str, self.public.input.shape))}]",
                    got=f"{pixels.dtype} {pixels.shape}",
                    remedy="resize them to the network's input",
                )
            )
        mean, std = (np.array(values)[:, None, None] for values in (self.about.mean, self.about.std))
        scaled: NDArray[np.float64] = (pixels / 255.0 - mean) / std
        return scaled


@dataclass(frozen=True)
class ServerModel:
    """What the server knows.

    Attributes:
        client: what its clients know.
        program: with the weights.
    """

    client: ClientModel
    program: Program = field(repr=False)


def make_model(program: Program, about: About) -> ServerModel:
    """Join a program with what people need to know of it.

    Clients get the program, and layers carry the names of their owner's source code. So they are numbered here.

    Raises:
        DeepReduceError: the program is beyond what the encryption carries, see `make_layout`.
    """
    steps = tuple(
        changed(step, name=f"{type(step.op).__name__.lower()} {number}")
        for number, step in enumerate(program.public.steps, start=1)
    )
    program = changed(program, public=changed(program.public, steps=steps))
    largest = max((_bits_of(own.weight) for own in program.weights.values() if own.weight is not None), default=2)
    model = ServerModel(ClientModel(program.public, about, max(2, largest)), program)
    _ = model.client.layout
    return model


def _bits_of(weight: NDArray[np.int64]) -> int:
    """Return w for weights in [-2^(w-1), 2^(w-1))."""
    low, high = int(weight.min(initial=0)), int(weight.max(initial=0))
    return 1 + max((-1 - low).bit_length() if low < 0 else 0, high.bit_length())


def save_model(model: ServerModel, folder: Path, *, replace: bool = False) -> tuple[Path, Path]:
    """Write both files, each whole or not at all; only the owner can read the server's.

    Args:
        model: what to write.
        folder: made if missing.
        replace: put these files in the place of others. A server that runs keeps the network that it read; clients
            with the old file are refused once it starts again, and bundles that were prepared are of no more use.

    Returns:
        The server's and the client's file.

    Raises:
        RunError: the folder cannot be written, or holds another network and `replace` is not given.
    """
    server, client = folder / SERVER_FILE, folder / CLIENT_FILE
    public = np.frombuffer(public_to_bytes(model.client.public), np.uint8)
    secret = np.frombuffer(weights_to_bytes(model.program), np.uint8)
    contents = {
        client: _file({"program": public, "about": _about_bytes(model.client, CLIENT)}),
        server: _file({"program": public, "about": _about_bytes(model.client, SERVER), "weights": secret}),
    }
    if not replace:
        for path, content in contents.items():
            if path.exists() and not _holds(path, content):
                raise RunError(
                    problem(
                        "a folder holds the two files of one network",
                        got="files of another",
                        remedy="give another folder, or --replace if the old network is served no more",
                        where=path,
                    )
                )
    for path, content in contents.items():
        with replacing(path, private=path == server) as temporary:
            temporary.write_bytes(content)
    return server, client


def _file(entries: dict[str, NDArray[np.uint8]]) -> bytes:
    return save(entries | {"checksum": np.frombuffer(_checksum(entries), np.uint8)})


def _checksum(entries: dict[str, NDArray[np.uint8]]) -> bytes:
    """Return the SHA-256 of a file's other entries: of each its name, its length and its bytes."""
    found = hashlib.sha256()
    for name in sorted(set(entries) - {"checksum"}):
        found.update(f"{name} {entries[name].size}\n".encode())
        found.update(entries[name].data)
    return found.digest()


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def load_client(path: Path) -> ClientModel:
    """Read a client's file, which may come from anyone.

    Raises:
        RecipeError: it is damaged, of another kind, or inconsistent.
    """
    return _read(path, CLIENT)[0]


def load_server(path: Path, *, serving: bool = False) -> ServerModel:
    """Read a server's file.

    Args:
        path: of the file.
        serving: whether it will be served: then nobody but its owner may be able to read it, as with a private key.

    Raises:
        RecipeError: it is damaged, of another kind, or inconsistent.
        RunError: it will be served, and others may read it.
    """
    client, arrays = _read(path, SERVER)
    if serving:
        _check_private(path)
    program = program_from_bytes(arrays["program"].tobytes(), arrays["weights"].tobytes())
    largest = max((_bits_of(own.weight) for own in program.weights.values() if own.weight is not None), default=2)
    if largest > client.weight_bits:
        raise _damaged(path, f"weights of {largest} bits where {client.weight_bits} are declared")
    return ServerModel(client, program)


def _check_private(path: Path) -> None:
    if mode := open_to_others(path):
        raise RunError(
            problem(
                "the weights that are served must be readable by their owner alone",
                got=f"mode {mode}",
                remedy=f"chmod 600 '{path}', and find out who may have read them",
                where=path,
            )
        )


def _about_bytes(model: ClientModel, form: str) -> NDArray[np.uint8]:
    about = model.about
    value = {
        "format": form,
        "version": VERSION,
        "network": about.network,
        "relus": about.relus,
        "classes": list(about.classes),
        "mean": list(about.mean),
        "std": list(about.std),
        "weight_bits": model.weight_bits,
    }
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)


def _read(path: Path, form: str) -> tuple[ClientModel, dict[str, NDArray[Any]]]:
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise _damaged(path, "no regular file")
        size = path.stat().st_size
        if size > MAX_PUBLIC_BYTES + _MAX_ABOUT_BYTES + (MAX_SECRET_BYTES if form == SERVER else 0):
            raise _damaged(path, f"{size:,} bytes")
        arrays = load(path.read_bytes())
    except OSError as error:
        raise RecipeError(
            problem("the file must be readable", got=error.strerror, remedy="check the path", where=path)
        ) from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    expected = {"program", "about", "checksum"} | ({"weights"} if form == SERVER else set())
    if set(arrays) == expected - {"checksum"}:
        raise _damaged(path, "a file of an earlier release")
    if set(arrays) != expected or any(array.dtype != np.uint8 or array.ndim != 1 for array in arrays.values()):
        kind = "the server's" if form == SERVER else "a client's"
        raise RecipeError(
            problem(
                f"this is {kind} file, as deepreduce export writes it",
                got=f"entries {sorted(arrays)}"[:200],
                remedy=f"take {SERVER_FILE if form == SERVER else CLIENT_FILE}",
                where=path,
            )
        )
    try:
        if arrays["checksum"].tobytes() != _checksum(arrays):
            raise ValueError("a checksum that does not fit")
        if arrays["about"].size > _MAX_ABOUT_BYTES:
            raise ValueError("a description that is too long")
        value = parse_json(arrays["about"].tobytes())
        if not isinstance(value, dict) or (value.get("format"), value.get("version")) != (form, VERSION):
            raise ValueError(f"not of format {form!r}, version {VERSION}")
        public = public_from_bytes(arrays["program"].tobytes())
        channels = public.input.shape[0]
        about = About(
            network=printable(json_field(value, "network", str)),
            relus=json_field(value, "relus", int),
            classes=tuple(map(printable, json_list(value, "classes", str, length=public.classes))),
            mean=tuple(json_list(value, "mean", float, length=channels)),
            std=tuple(json_list(value, "std", float, length=channels)),
        )
        bits = json_field(value, "weight_bits", int)
        if min(about.std) <= 0 or not 2 <= bits <= 32:
            raise ValueError("std or weight_bits out of range")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return ClientModel(public, about, bits), arrays


def _damaged(path: Path, error: object) -> RecipeError:
    return RecipeError(
        problem(
            "a model is a complete file of this release",
            got=str(error)[:300],
            remedy="export it again",
            where=path,
        )
    )
