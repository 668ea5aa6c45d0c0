"""A hostile client file: a few hundred bytes that name large numbers and so ask for all memory, or for hours."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepreduce.errors import RecipeError
from deepreduce.private.deployment import load_client
from deepreduce.private.homomorphic import LayerError
from deepreduce.private.homomorphic import steps as homomorphic_steps
from deepreduce.private.program import (
    Circuit,
    Convolution,
    Gather,
    Matrix,
    PublicProgram,
    Reshape,
    Step,
    SumPool,
    TensorFormat,
    check_public,
    public_from_bytes,
    public_to_bytes,
)
from deepreduce.private.program.program import argmax_format


def client_file(folder: Path, shape: tuple[int, ...], *ops: tuple[Any, tuple[int, ...]]) -> Path:
    """Write the file of a network whose steps all read the image, and which classifies by the first of them."""
    shapes = [shape, *(out for _, out in ops)]
    steps = [Step(op, (0,), number + 1, "") for number, (op, _) in enumerate(ops)]
    size = int(np.prod(shapes[1]))
    for op, inputs, out in (
        (Reshape(), 1, (size,)),
        (Matrix((2, size)), len(shapes), (2,)),
        (Circuit("argmax", 8, 1), len(shapes) + 1, (1,)),
    ):
        steps.append(Step(op, (inputs,), len(steps) + 1, ""))
        shapes.append(out)
    tensors = [*(TensorFormat(each, 3, 9) for each in shapes[:-1]), TensorFormat((1,), 0, 1)]
    about = {
        "format": "deepreduce.client", "version": 2, "network": "evil", "relus": 0, "classes": ["a", "b"],
        "mean": [0.5] * shape[0], "std": [0.5] * shape[0], "weight_bits": 8,
    }  # fmt: skip
    program = np.frombuffer(public_to_bytes(PublicProgram(tuple(tensors), tuple(steps))), np.uint8)
    path = folder / "client.safetensors"
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    checked = hashlib.sha256(f"about {text.size}\n".encode() + text.tobytes())
    checked.update(f"program {program.size}\n".encode() + program.tobytes())
    save_file({"program": program, "about": text, "checksum": np.frombuffer(checked.digest(), np.uint8)}, path)
    return path


def test_example_an_honest_file_of_this_form_is_taken(tmp_path: Path) -> None:
    path = client_file(
        tmp_path, (4, 8, 8), (SumPool((2, 2), (2, 2)), (4, 4, 4)), (Convolution((3, 4, 8, 8)), (3, 1, 1))
    )
    assert len(load_client(path).layout.jobs) == 2


@pytest.mark.parametrize(
    "op",
    [SumPool((1, 1), (4096, 4096), (4096,) * 4), Convolution((1024, 1024, 1, 1), (4096, 4096), (4096,) * 4)],
    ids=str,
)
def test_a_padding_of_550_gigabytes(tmp_path: Path, op: SumPool | Convolution) -> None:
    with pytest.raises(
        RecipeError, match=r"consistent. Got: a padded map of 68736254976 elements. Do: .* Where: step 0"
    ):
        load_client(client_file(tmp_path, (1024, 1, 1), (op, (1024, 3, 3))))


def test_layers_that_take_hours_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped ones with many channels per group, each of another shape: a second each, and 4,000 fit into a file."""
    ops = [(Convolution((4096 - 2 * n, 2048, 2, 2), (2, 2), groups=2), (4096 - 2 * n, 1, 1)) for n in range(200)]
    model = load_client(client_file(tmp_path, (4096, 2, 2), *ops))
    monkeypatch.setattr(homomorphic_steps, "plan_layer", lambda layer: pytest.fail(f"planned {layer}"))
    with pytest.raises(LayerError, match=r"cut in at most .* ways together. Got: .* Do: give grouped convolutions"):
        _ = model.layout


def test_a_kernel_that_has_a_small_map_sent_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A polynomial holds one row of outputs, and with it 90 rows of the map: 3,956 ciphertexts where 88 would hold it."""
    path = client_file(tmp_path, (1, 8000, 90), (Convolution((1, 1, 90, 90)), (1, 7911, 1)))
    requests = sum(job.plan.plan.requests for job in load_client(path).layout.jobs)
    assert requests > 3000
    monkeypatch.setattr(homomorphic_steps, "MAX_REQUESTS", requests - 1)
    with pytest.raises(LayerError, match=r"at most [\d,]+ ciphertexts.*Got: [\d,]+\. Do: .* Where: Layer\("):
        _ = load_client(path).layout


def test_one_layer_whose_message_takes_gigabytes(tmp_path: Path) -> None:
    """A thousand bytes: 63,296 ciphertexts to send for one layer, 65,536 to receive for another."""
    for shape, pool, out, op, end in (
        ((16, 8000, 90), SumPool((4096, 90), (4096, 1)), (16, 1, 1), Convolution((1, 16, 90, 90)), (1, 7911, 1)),
        ((1, 46, 90), SumPool((46, 90), (1, 1)), (1, 1, 1),
         Convolution((65536, 1, 2, 2), (1, 1), (0, 0, 0, 0), (44, 88)), (65536, 2, 2)),
    ):  # fmt: skip
        path = client_file(tmp_path, shape, (pool, out), (op, end))
        assert path.stat().st_size < 2000
        with pytest.raises(
            LayerError, match=r"layer takes at most 8,192 ciphertexts in one direction\. Got: 6\d,\d+\."
        ):
            _ = load_client(path).layout


def test_pools_of_a_million_taps(tmp_path: Path) -> None:
    """Every tap is a call of its own: 50 million of them in 800 bytes."""
    pool = SumPool((4096, 4096), (1, 1))
    with pytest.raises(RecipeError, match=r"Got: \d+ reads by local steps"):
        load_client(client_file(tmp_path, (1, 4096, 4096), *[(pool, (1, 1, 1))] * 3))


def test_an_arg_max_of_a_quarter_of_a_million_classes() -> None:
    """Two bits each, and 18 of an index beside them."""
    size = 1 << 18
    forms = [TensorFormat(shape, 3, 9) for shape in ((1, 1, 1), (1,), (size,))]
    ops = (Reshape(), Gather(np.zeros(size, np.int32)), Circuit("argmax", 2, 1))
    steps = tuple(Step(op, (number,), number + 1, "") for number, op in enumerate(ops))
    public = PublicProgram((*forms, argmax_format(size)), steps)
    with pytest.raises(RecipeError, match=r"Got: circuits of \d+ bits"):
        public_from_bytes(public_to_bytes(public))


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31m", "a\nb"], ids=ascii)
def test_a_name_that_no_terminal_should_see(name: str) -> None:
    forms = (TensorFormat((1, 1, 2), 3, 9), TensorFormat((2,), 3, 9), argmax_format(2))
    steps = (Step(Reshape(), (0,), 1, name), Step(Circuit("argmax", 2, 1), (1,), 2, ""))
    with pytest.raises(RecipeError, match=r"Got: a name of printable characters\. Do: .* Where: step 0\."):
        check_public(PublicProgram(forms, steps))


def test_what_a_file_says_reaches_no_terminal(tmp_path: Path) -> None:
    path = client_file(tmp_path, (1, 2, 2), (SumPool((2, 2), (2, 2)), (1, 1, 1)))
    content = bytearray(path.read_bytes())
    at = content.index(b'"U8"')
    content[at + 1 : at + 3] = b"\x1b["
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_client(path)
    assert str(caught.value).isprintable()
