"""The format of tables, labels and digests, pinned: a change here breaks stored bundles and the other party."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from deepreduce.private.circuits import TRUE, Builder, Circuit, relu
from deepreduce.private.garbling import Backend, Tweak

from .play import backends, play, random_inputs

BACKENDS = pytest.mark.parametrize("backend", backends(), ids=lambda b: b.name)


def small() -> Circuit:
    """One AND of each kind, one term of each kind."""
    b = Builder()
    x, y = b.input("garbler", "x", 2)
    (z,) = b.input("evaluator", "z", 1)
    both = b.and_(x, b.xor(y, z) ^ 1)
    b.output("out", [b.and_(both, z)])
    b.word("w", 20, [(x, TRUE, 3), (y, both, 1 << 10)])
    return b.build()


def test_key_of_a_tweak() -> None:
    tweak = Tweak(bytes(16), bundle=0x060504030201, layer=0x0807)
    assert tweak.key_base().hex() == "0000000000000000" + "0708" + "010203040506"


def test_digest() -> None:
    assert small().digest.hex() == "84dbd403de3429d2bdb9833cfbe1d326f0ed57a43911849f944bda396f4baf2b"


@BACKENDS
def test_bytes_of_one_instance(backend: Backend) -> None:
    played = play(small(), {"x": np.array([3]), "z": np.array([1])}, backend=backend)
    assert played.garbler_labels.tobytes().hex() == "55583dd1b9ac13601c27248006e1334f643538f1a7bd631b41baa7fe93174981"
    assert played.garbled.tables.tobytes().hex() == (
        "8e5cd86bb25b515bfc8cb82ac48bee257a2ce3ccabcdfe86f902d72843a3635f4407b4d3faa44b6bd2ecf42645530893"
        "283e7c0596c408d01d68833e204e23be"
    )
    assert played.garbled.decoding.tolist() == [[0]]
    assert played.garbled.offsets.tolist() == [[274280]]
    assert played.evaluated.words.tolist() == [[275307]]


@BACKENDS
def test_bytes_of_many_instances(backend: Backend) -> None:
    circuit = relu(17, 27)
    played = play(circuit, random_inputs(circuit, 100, 9), backend=backend)
    assert (
        hashlib.sha256(played.garbled.tables.tobytes()).hexdigest()
        == "10a562a43b7fae785d1600075ef0cbf9238e936e8f45c9e4f6d83d9f1a0c6da3"
    )
