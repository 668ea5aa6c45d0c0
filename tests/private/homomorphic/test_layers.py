"""The whole protocol against plain integer convolution."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepreduce.errors import RunError
from deepreduce.private.homomorphic import (
    Answer,
    Keys,
    Layer,
    LayerError,
    MessageError,
    Parameters,
    Plan,
    Pool,
    PreparedWeights,
    ProcessPool,
    PublicKey,
    Request,
    WeightsError,
    choose_parameters,
    draw_share,
    generate_keys,
    open_pool,
    plan_layer,
    prepare_weights,
    receive,
    request,
    respond,
)
from deepreduce.private.homomorphic._backends import available_backends
from deepreduce.private.homomorphic.parameters import PRIME_SETS
from deepreduce.private.homomorphic.scheme import scheme
from deepreduce.private.homomorphic.server import _answer_apart
from deepreduce.private.homomorphic.weights import transform_weights
from deepreduce.private.homomorphic.wire import read_answer

from .exact import RESNET18, convolve, layer, network_layers, noise

NETWORKS = ("resnet18", "resnet34", "mobilenet_v1", "vgg16", "wide_resnet_22_8")


@pytest.fixture(scope="module")
def keys() -> Keys:
    return generate_keys(Parameters(27, (56, 56)))


def ring(keys: Keys) -> np.uint64:
    return np.uint64((1 << keys.parameters.ring_bits) - 1)


def both_parties(keys: Keys, shape: Layer, weights, *, weight_bits: int, pool: Pool | None = None, file=None):
    """Run one layer over serialised messages; return the client's input and the sum of both outputs."""
    plan, parameters = plan_layer(shape), keys.parameters
    prepared = prepare_weights(parameters, plan, weights, weight_bits=weight_bits, file=file)
    share = draw_share(parameters, shape.in_shape)
    sent = request(keys, plan, share, pool=pool).to_bytes()
    public = PublicKey.from_bytes(parameters, PublicKey.of(keys).to_bytes())
    response = respond(prepared, public, Request.from_bytes(parameters, plan, sent), pool=pool)
    result = receive(keys, Answer.from_bytes(parameters, plan, response.answer.to_bytes()), pool=pool)
    assert result.max() <= ring(keys) and response.share.max() <= ring(keys)
    return share, (result + response.share) & ring(keys)


def test_example_a_convolution(keys: Keys) -> None:
    shape = layer(8, 10, 16)
    weights = np.random.default_rng(0).integers(-128, 128, shape.weight_shape)
    share, total = both_parties(keys, shape, weights, weight_bits=8)
    assert np.array_equal(total, convolve(shape, share, weights) & ring(keys))


def reduced(shape: Layer) -> Layer:
    """Return a layer with the same geometry and few channels."""
    if shape.groups > 1:
        return Layer(10, 10, *shape.in_shape[1:], shape.kernel, shape.stride, shape.padding, 10)
    few = (min(shape.in_channels, 9), min(shape.out_channels, 10))
    return Layer(*few, *shape.in_shape[1:], shape.kernel, shape.stride, shape.padding)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_shape_of_the_reference_networks_with_fewer_channels(name: str, keys: Keys) -> None:
    rng = np.random.default_rng(1)
    shapes = {reduced(shape) for shape in network_layers(name)}
    assert len(shapes) >= 7
    for shape in shapes:
        weights = rng.integers(-128, 128, shape.weight_shape)
        share, total = both_parties(keys, shape, weights, weight_bits=8)
        assert np.array_equal(total, convolve(shape, share, weights) & ring(keys)), shape


def test_the_list_of_resnet18_is_its_layers() -> None:
    assert set(network_layers("resnet18")) == {shape for _, shape, _ in RESNET18}


@pytest.mark.parametrize("name,shape", [(name, shape) for name, shape, _ in RESNET18], ids=[n for n, _, _ in RESNET18])
def test_one_answer_of_every_full_layer_of_resnet18(name: str, shape: Layer, keys: Keys) -> None:
    """All channels of the input, one ciphertext of the output, worst-case weights; benchmarks/ runs the rest."""
    plan, parameters, context = plan_layer(shape), keys.parameters, scheme(keys.parameters)
    rng = np.random.default_rng(2)
    weights = np.where(rng.integers(0, 2, shape.weight_shape) == 1, 127, -128)
    answer = plan.answers - 1
    group_tile, channel_tile, _ = plan.answer_place(answer)
    words = np.zeros((plan.weight_polynomials, parameters.degree * 2), np.uint64)
    first = (group_tile * plan.channel_tiles + channel_tile) * plan.plane_tiles
    for offset, polynomial in enumerate(plan.encode_weights(weights, group_tile, channel_tile)):
        words[first + offset] = transform_weights(parameters, polynomial).ravel()
    prepared = PreparedWeights(parameters, plan, np.ones(len(words), np.uint8), words)
    share = draw_share(parameters, shape.in_shape)
    bodies = dict(enumerate(request(keys, plan, share).bodies))
    [(number, body, mask)] = _answer_apart(prepared, PublicKey.of(keys), bodies, range(answer, plan.answers))
    places, indices = plan.results[answer]
    received = read_answer(parameters, body, places)
    # Only the sent coefficients count; the noise of the others is that of the zeros put in their place.
    left = noise(keys, received, "answer")[places]
    assert number == answer
    assert 2 * abs(left).max() * 2 <= context.primes[0], "less than one bit of noise budget is left"
    expected = np.zeros(shape.outputs, np.uint64)
    channels = np.unique(indices // (shape.out_height * shape.out_width))
    expected.reshape(shape.out_shape)[channels] = convolve(
        Layer(shape.in_channels, len(channels), *shape.in_shape[1:], shape.kernel, shape.stride, shape.padding),
        share,
        weights[channels],
    )
    result = context.values(context.decryptor(keys).decrypt(context.ciphertext(received, "answer")))[places]
    assert np.array_equal((result + mask) & ring(keys), expected[indices] & ring(keys))


@pytest.mark.parametrize(
    "ring_bits,weight_bits,primes",
    [
        *((2, 2, 0), (32, 8, 1), (35, 10, 1), (37, 13, 2), (40, 13, 3), (43, 16, 3)),
        *((44, 8, 2), (48, 12, 2), (48, 20, 3), (59, 20, 3), (59, 28, 4), (59, 32, 4)),
    ],
)
def test_every_prime_set_is_exact_and_keeps_a_bit_of_budget(ring_bits: int, weight_bits: int, primes: int) -> None:
    shape = layer(40, 12, 8)
    plan = plan_layer(shape)
    parameters = choose_parameters([plan], ring_bits=ring_bits, weight_bits=weight_bits)
    assert parameters.prime_bits == PRIME_SETS[primes]
    keys, limit = generate_keys(parameters), 1 << (weight_bits - 1)
    weights = np.full(shape.weight_shape, -limit)
    prepared = prepare_weights(parameters, plan, weights, weight_bits=weight_bits)
    share = draw_share(parameters, shape.in_shape)
    response = respond(prepared, PublicKey.of(keys), request(keys, plan, share))
    total = (receive(keys, response.answer) + response.share) & ring(keys)
    assert np.array_equal(total, convolve(shape, share, weights) & ring(keys))
    for body, (places, _) in zip(response.answer.bodies, plan.results, strict=True):
        left = noise(keys, read_answer(parameters, body, places), "answer")[places]
        assert 4 * abs(left).max() <= math.prod(scheme(parameters).answer_primes)


@pytest.mark.parametrize("workers", [open_pool, ProcessPool], ids=["default", "processes"])
def test_wide_rings_with_workers_and_a_file(tmp_path: Path, workers: Callable[[int], Pool]) -> None:
    """The sum of negative weights, in the largest ring, through every path that ciphertexts and weights can take."""
    keys, shape = generate_keys(Parameters(59, (60, 60, 60))), layer(9, 17, 16)
    weights = np.random.default_rng(4).integers(-(1 << 20), 0, shape.weight_shape)
    with workers(2) as pool:
        share, total = both_parties(keys, shape, weights, weight_bits=21, pool=pool, file=tmp_path / "layer")
    assert np.array_equal(total, convolve(shape, share, weights) & ring(keys))


@pytest.mark.parametrize("primes", PRIME_SETS, ids=str)
@pytest.mark.parametrize("ring_bits", [33, 39, 44, 50, 59])
def test_weights_are_lifted_with_their_sign(ring_bits: int, primes: tuple[int, ...]) -> None:
    """Also modulo primes below t, where SEAL cannot subtract t from single words."""
    keys = generate_keys(Parameters(ring_bits, primes))
    context, n = scheme(keys.parameters), keys.parameters.degree
    weights = np.random.default_rng(5).integers(-(1 << 31), 1 << 31, n)
    weights[:5] = [-1, 1, 0, -(1 << 31), (1 << 31) - 1]
    transformed, *others = (transform_weights(keys.parameters, weights, backend=name) for name in available_backends())
    assert all(np.array_equal(transformed, other) for other in others)
    both = context.ciphertext(np.stack([transformed, transformed]), "transformed")
    found = context.words(context.evaluator.transform_from_ntt(both))[0]
    for line, prime in zip(found, context.primes, strict=True):
        assert np.array_equal(line.astype(np.int64), weights % prime)


def test_zero_weights_are_answered_like_others(keys: Keys) -> None:
    shape = layer(10, 20, 8)
    weights = np.zeros(shape.weight_shape, np.int64)
    _, total = both_parties(keys, shape, weights, weight_bits=8)
    assert not total.any()
    weights[3, 4, 1, 1] = 1
    share, total = both_parties(keys, shape, weights, weight_bits=8)
    assert np.array_equal(total[3], share[4])


def test_masks_are_fresh(keys: Keys) -> None:
    shape = layer(2, 3, 8)
    plan = plan_layer(shape)
    prepared = prepare_weights(keys.parameters, plan, np.ones(shape.weight_shape, np.int64), weight_bits=8)
    sent = request(keys, plan, draw_share(keys.parameters, shape.in_shape))
    first, second = (respond(prepared, PublicKey.of(keys), sent) for _ in range(2))
    assert (first.share == second.share).mean() < 0.05
    assert first.answer.bodies[0] != second.answer.bodies[0]
    assert sent.bodies[0] != request(keys, plan, np.zeros(shape.in_shape, np.uint64)).bodies[0]


@pytest.mark.parametrize("workers", [open_pool, ProcessPool], ids=["default", "processes"])
def test_weights_in_a_file_are_computed_once_and_shared_with_workers(
    keys: Keys, tmp_path: Path, workers: Callable[[int], Pool]
) -> None:
    shape, file = layer(9, 17, 16), tmp_path / "model" / "layer1"
    weights = np.random.default_rng(3).integers(-128, 128, shape.weight_shape)
    with workers(2) as pool:
        share, total = both_parties(keys, shape, weights, weight_bits=8, pool=pool, file=file)
    assert np.array_equal(total, convolve(shape, share, weights) & ring(keys))
    assert file.stat().st_mode & 0o077 == 0
    written = file.stat().st_mtime_ns
    prepared = prepare_weights(keys.parameters, plan_layer(shape), weights, weight_bits=8, file=file)
    assert file.stat().st_mtime_ns == written
    in_memory = prepare_weights(keys.parameters, plan_layer(shape), weights, weight_bits=8)
    assert np.array_equal(prepared.words, in_memory.words)
    assert np.array_equal(prepared.used, in_memory.used)
    # Other weights, or a torn file, are prepared anew.
    both_parties(keys, shape, -weights - 1, weight_bits=8, file=file)
    assert file.stat().st_mtime_ns != written
    file.write_bytes(file.read_bytes()[:-1])
    share, total = both_parties(keys, shape, weights, weight_bits=8, file=file)
    assert np.array_equal(total, convolve(shape, share, weights) & ring(keys))


def test_a_file_of_weights_that_is_cut_off_ends_no_process(keys: Keys, tmp_path: Path) -> None:
    """To read a map beyond the end of its file would."""
    shape, file = layer(9, 17, 16), tmp_path / "layer"
    prepared = prepare_weights(
        keys.parameters, plan_layer(shape), np.ones(shape.weight_shape, int), weight_bits=8, file=file
    )
    asked = request(keys, prepared.plan, draw_share(keys.parameters, shape.in_shape))
    with open_pool(2) as pool:
        respond(prepared, PublicKey.of(keys), asked, pool=pool)
        os.truncate(file, 4096)
        with pytest.raises(WeightsError, match=r"cut off.*Do: start the server again.*Where: "):
            respond(prepared, PublicKey.of(keys), asked, pool=pool)
        file.unlink()
        other = prepare_weights(
            keys.parameters, prepared.plan, np.ones(shape.weight_shape, int), weight_bits=8, file=file
        )
        file.unlink()
        respond(other, PublicKey.of(keys), asked)  # who has mapped it has it still


def pages(plan: Plan, parameters: Parameters) -> tuple[int, int]:
    """Return where the table of a file of prepared weights ends, and where its values begin."""
    table = 4096 + 5 * plan.weight_polynomials + 4
    return table, -(-table // 4096) * 4096


@pytest.mark.parametrize("place", ["used", "checksum", "of the table", "first", "middle", "last", "cut short"])
def test_damaged_weights_are_found_and_made_again(
    keys: Keys, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """One bit would make every answer of a served network wrong."""
    shape, file = layer(9, 17, 16), tmp_path / "layer"
    plan, weights = plan_layer(shape), np.random.default_rng(3).integers(-128, 128, shape.weight_shape)
    prepare_weights(keys.parameters, plan, weights, weight_bits=8, file=file)
    good = file.read_bytes()
    table, values = pages(plan, keys.parameters)
    assert len(good) == values + plan.weight_polynomials * keys.parameters.degree * 2 * 8
    damaged, count = bytearray(good), plan.weight_polynomials
    where = {
        "used": 4096 + count - 1, "checksum": 4096 + count + 4 * (count - 1), "of the table": table - 1,
        "first": values, "middle": (values + len(good)) // 2, "last": len(good) - 1,
    }  # fmt: skip
    if place == "cut short":
        del damaged[-1:]
    else:
        damaged[where[place]] ^= 1
    file.write_bytes(damaged)
    again = prepare_weights(keys.parameters, plan, weights, weight_bits=8, file=file)
    assert file.read_bytes() == good and np.array_equal(
        again.words, np.frombuffer(good[values:], "<u8").reshape(count, -1)
    )
    (warning,) = caplog.records
    assert warning.levelname == "WARNING" and str(file) in warning.getMessage() and "damaged" in warning.getMessage()
    caplog.clear()
    prepare_weights(keys.parameters, plan, weights, weight_bits=8, file=file)
    prepare_weights(keys.parameters, plan, -weights - 1, weight_bits=8, file=file)  # other weights are no damage
    assert not caplog.records


def test_a_disk_that_cannot_be_read_is_damage(
    keys: Keys, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, file = layer(2, 2, 8), tmp_path / "layer"
    plan, weights = plan_layer(shape), np.ones(shape.weight_shape, np.int64)
    prepare_weights(keys.parameters, plan, weights, weight_bits=8, file=file)

    def fail(path: Path, mode: str = "r", *_: object) -> object:
        if path == file and mode == "rb":
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, mode)

    opened = Path.open
    monkeypatch.setattr(Path, "open", fail)
    prepare_weights(keys.parameters, plan, weights, weight_bits=8, file=file)
    assert "Input/output error" in caplog.text


def test_golden_bytes_of_prepared_weights(keys: Keys, tmp_path: Path) -> None:
    """The file as docs/formats.md has it; polynomials that are all zero have no values and no checksum."""
    shape, file = layer(9, 17, 16), tmp_path / "layer"
    plan, weights = plan_layer(shape), np.zeros(shape.weight_shape, np.int64)
    weights[-1, -1] = 1
    prepared = prepare_weights(keys.parameters, plan, weights, weight_bits=8, file=file)
    content, (table, values) = file.read_bytes(), pages(plan, keys.parameters)
    line = json.loads(content[:4096])
    assert content[4095:4096] == b"\n" and (line["format"], line["version"]) == ("deepreduce weights", 2)
    count = plan.weight_polynomials
    used = content[4096 : 4096 + count]
    assert used == prepared.used.tobytes() and 0 < sum(used) < count
    for number in range(count):
        start = values + number * keys.parameters.degree * 16
        own = content[start : start + keys.parameters.degree * 16]
        checksum = content[4096 + count + 4 * number :][:4]
        assert checksum == (zlib.crc32(own) if used[number] else 0).to_bytes(4, "little")
        assert used[number] or not any(own)
    assert content[table - 4 : table] == zlib.crc32(content[4096 : table - 4]).to_bytes(4, "little")
    assert not any(content[table:values])


def test_weights_that_are_damaged_while_they_are_used_are_named(keys: Keys, tmp_path: Path) -> None:
    shape, file = layer(2, 2, 8), tmp_path / "layer"
    plan = plan_layer(shape)
    prepared = prepare_weights(keys.parameters, plan, np.ones(shape.weight_shape, np.int64), weight_bits=8, file=file)
    with file.open("r+b") as content:
        content.seek(-8, os.SEEK_END)
        content.write(b"\xff" * 8)
    sent = request(keys, plan, draw_share(keys.parameters, shape.in_shape))
    with pytest.raises(WeightsError, match=r"as prepare_weights wrote them.*Do: start the server again"):
        respond(prepared, PublicKey.of(keys), sent)


def test_what_does_not_fit_is_refused(keys: Keys) -> None:
    shape = layer(2, 2, 8)
    plan = plan_layer(shape)
    with pytest.raises(WeightsError, match="8 bits"):
        prepare_weights(keys.parameters, plan, np.full(shape.weight_shape, 128), weight_bits=8)
    share = draw_share(keys.parameters, shape.in_shape)
    with pytest.raises(LayerError, match="below 2\\^27"):
        request(keys, plan, share + (ring(keys) + np.uint64(1)))
    with pytest.raises(LayerError, match="unsigned"):
        request(keys, plan, share.astype(np.int64))
    prepared = prepare_weights(keys.parameters, plan, np.ones(shape.weight_shape, np.int64), weight_bits=8)
    other = plan_layer(layer(2, 2, 9))
    foreign = request(keys, other, draw_share(keys.parameters, other.layer.in_shape))
    with pytest.raises(MessageError, match="same parameters and plan"):
        respond(prepared, PublicKey.of(keys), foreign)


def test_a_worker_maps_no_other_networks_weights(keys: Keys, tmp_path: Path) -> None:
    """Answers of one network's weights under another one's bias would be nonsense that nobody sees."""
    shape, file = layer(2, 2, 8), tmp_path / "layer"
    plan, weights = plan_layer(shape), np.ones(shape.weight_shape, np.int64)
    prepared = prepare_weights(keys.parameters, plan, weights, weight_bits=8, file=file)
    assert np.array_equal(pickle.loads(pickle.dumps(prepared)).words, prepared.words)
    prepare_weights(keys.parameters, plan, -weights, weight_bits=8, file=file)
    with pytest.raises(WeightsError, match=r"Got: a file of other weights\. Do: start the server again"):
        pickle.loads(pickle.dumps(prepared))


def test_a_full_disk_is_an_error_and_leaves_nothing(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written through a map without its space, the file would end the process."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shape = layer(2, 2, 8)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(RunError, match="no space is left on the disk"):
        prepare_weights(
            keys.parameters,
            plan_layer(shape),
            np.ones(shape.weight_shape, np.int64),
            weight_bits=8,
            file=tmp_path / "w",
        )
    assert not list(tmp_path.iterdir())
