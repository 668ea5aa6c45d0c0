"""Programs as bytes: they come back as they were, and nothing that was changed is taken."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from torch import nn

from deepreduce.errors import RecipeError
from deepreduce.private.program import (
    Circuit,
    Convolution,
    FormatSettings,
    Gather,
    Matrix,
    Program,
    PublicProgram,
    Reshape,
    Step,
    Sum,
    SumPool,
    TensorFormat,
    Truncation,
    check_public,
    make_program,
    program_from_bytes,
    public_from_bytes,
    public_to_bytes,
    weights_to_bytes,
)
from deepreduce.private.program.files import MAX_STRUCTURE_BYTES

from .small import Lambda, images

TINY = PublicProgram(
    (TensorFormat((1, 1, 2), 3, 9), TensorFormat((2,), 3, 9), TensorFormat((2,), 2, 9), TensorFormat((1,), 0, 1)),
    (
        Step(Reshape(), (0,), 1, "flat"),
        Step(Circuit("relu", 8, 1, tested=4), (1,), 2, "relu"),
        Step(Circuit("argmax", 8, 1), (2,), 3, "argmax"),
    ),
)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    net = Lambda(
        lambda net, x: net.f(F.max_pool2d(F.relu(net.c(x)) + F.pad(x[:, :, :, 1:], (1, 0)), 2).flatten(1)),
        c=nn.Conv2d(3, 3, 3, padding=1),
        f=nn.Linear(12, 3),
    )
    mask = np.zeros((3, 4, 4), dtype=bool)
    mask[0] = True
    settings = FormatSettings(tolerance=1.0)
    return make_program(net, images(8, 3, 4, 4), settings=settings, masks={"net:relu": mask})


def test_both_parts_come_back(program: Program) -> None:
    public, secret = public_to_bytes(program.public), weights_to_bytes(program)
    assert public_from_bytes(public) == program.public
    assert program_from_bytes(public, secret) == program
    assert public_to_bytes(public_from_bytes(public)) == public


def test_golden_bytes() -> None:
    check_public(TINY)
    blob = public_to_bytes(TINY)
    assert load(blob)["structure"].tobytes().decode() == (
        '{"format":"deepreduce.program","version":3,"tensors":[[[1,1,2],3,9],[[2],3,9],[[2],2,9],[[1],0,1]],"steps":['
        '{"op":"reshape","inputs":[0],"name":"flat"},'
        '{"op":"circuit","inputs":[1],"name":"relu","kind":"relu","width":8,"dropped":1,"rest_in_circuit":false,'
        '"tested":4},'
        '{"op":"circuit","inputs":[2],"name":"argmax","kind":"argmax","width":8,"dropped":1,'
        '"rest_in_circuit":false,"tested":0}]}'
    )
    assert public_from_bytes(blob) == TINY


def changed(blob: bytes, change: dict[str, Any] | None = None, **arrays: np.ndarray) -> bytes:
    """Return a blob with another structure or other arrays."""
    found = load(blob)
    structure = json.loads(found["structure"].tobytes())
    structure.update(change or {})
    found["structure"] = np.frombuffer(json.dumps(structure).encode(), dtype=np.uint8)
    return save({**found, **arrays})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"format": "other"},
        {"more": 1},
        {"steps": []},
        {"steps": 7},
        {"tensors": [[[1, 1, 2], 3, 9]]},
        {"tensors": [[[1, 1, 2.0], 3, 9], [[2], 3, 9], [[2], 2, 9], [[1], 0, 1]]},
        {"tensors": [[[1, 1, True], 3, 9], [[2], 3, 9], [[2], 2, 9], [[1], 0, 1]]},
        {"tensors": [[[1, 1, 2], 3, "9"], [[2], 3, 9], [[2], 2, 9], [[1], 0, 1]]},
        {"tensors": [[[1, 1, 2], 3, 63], [[2], 3, 9], [[2], 2, 9], [[1], 0, 1]]},
        {"tensors": [[[1, 1, 1 << 40], 3, 9], [[2], 3, 9], [[2], 2, 9], [[1], 0, 1]]},
        {"tensors": [[[1, 1, 2], 3, 9], [[2], 3, 9], [[2], 2, 7], [[1], 0, 1]]},
        {"tensors": [[[1, 1, 2], 3, 8], [[2], 3, 9], [[2], 2, 9], [[1], 0, 1]]},
    ],
)
def test_changed_structures_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"Do: "):
        public_from_bytes(changed(public_to_bytes(TINY), change))


def test_steps_that_do_not_fit_are_refused() -> None:
    relu = TINY.steps[1]
    assert relu.circuit is not None
    broken = [
        replace(relu, inputs=(2,)),
        replace(relu, inputs=(0, 1)),
        replace(relu, output=1),
        replace(relu, has_bias=True),
        replace(relu, op=replace(relu.circuit, kind="sigmoid")),
        replace(relu, op=replace(relu.circuit, kind="rescale")),
        *(replace(relu, op=replace(relu.circuit, tested=tested)) for tested in (-1, 1, 9, 4.0)),
        replace(relu, op=replace(relu.circuit, width=9)),
        replace(relu, op=replace(relu.circuit, dropped=0)),
        replace(relu, op=replace(relu.circuit, below=6)),
        replace(relu, op=replace(relu.circuit, kept=np.array([2], dtype=np.int32))),
        replace(relu, op=replace(relu.circuit, kept=np.array([0], dtype=np.int64))),
        replace(relu, op=replace(relu.circuit, rest_in_circuit=True)),
        replace(relu, op=replace(relu.circuit, kind="max", windows=np.array([[0], [1]], dtype=np.int32))),
        replace(relu, op=replace(relu.circuit, windows=np.array([[0], [1]], dtype=np.int32))),
        replace(relu, op=Sum((0,), (2,))),
        replace(relu, op=Sum((1,), (1,))),
        replace(relu, op=Circuit("argmax", 8, 1)),
    ]
    for step in broken:
        with pytest.raises(RecipeError, match="consistent"):
            check_public(replace(TINY, steps=(TINY.steps[0], step, TINY.steps[2])))


def test_a_table_that_no_memory_holds_is_refused() -> None:
    """A few hundred bytes must not ask for a table of 2^39 bits."""
    wide = [replace(form, ring_bits=50) for form in TINY.tensors[:3]]
    relu = TINY.steps[1]
    for tested in (13, 14, 40):
        steps = (TINY.steps[0], replace(relu, op=replace(relu.circuit, width=40, tested=tested)), TINY.steps[2])
        program = replace(TINY, tensors=(*wide, TINY.tensors[3]), steps=steps)
        if tested == 13:
            check_public(program)
        else:
            with pytest.raises(RecipeError, match=f"{tested} bits that are tested"):
                check_public(program)


def test_truncations_that_do_not_fit_are_refused() -> None:
    flat, relu, argmax = TINY.steps
    wide = [TensorFormat(form.shape, 3, 34) for form in TINY.tensors[:2]]
    tensors = (*wide, TensorFormat((2,), 1, 40), *TINY.tensors[2:])
    made = Step(Truncation(2), (1,), 2, "truncation")
    good = replace(relu, inputs=(2,), output=3, op=replace(relu.circuit, dropped=0))
    tensors = (*tensors[:3], TensorFormat((2,), 1, 9), tensors[4])
    public = PublicProgram(tensors, (flat, made, good, replace(argmax, inputs=(3,), output=4)))
    check_public(public)  # into a ring that is larger than the one that it reads
    assert public_from_bytes(public_to_bytes(public)) == public
    for broken in (
        replace(made, op=Truncation(1)),  # the fraction bits of another
        replace(made, op=Truncation(34)),
        replace(made, op=Truncation(5)),  # 29 uniform bits in a ring of 40
        replace(made, op=Truncation(-2)),
        replace(made, op=Truncation(True)),
        replace(made, has_bias=True),
        replace(made, inputs=(0,)),
        replace(made, inputs=(1, 1)),
    ):
        with pytest.raises(RecipeError, match="consistent"):
            check_public(replace(public, steps=(flat, broken, *public.steps[2:])))


def image_of(shape: tuple[int, ...], *steps: tuple[Any, tuple[int, ...]]) -> PublicProgram:
    """Return a program on one image in which every step reads the image and nothing reads the step."""
    tensors = [TensorFormat(shape, 3, 9), *(TensorFormat(out, 3, 9) for _, out in steps)]
    made = [Step(op, (0,), number + 1, "") for number, (op, _) in enumerate(steps)]
    return PublicProgram(
        (*tensors, TensorFormat((2,), 3, 9), TensorFormat((1,), 0, 1)),
        (
            *made,
            Step(Matrix((2, 1)), (len(tensors) - 1,), len(tensors), "classes"),
            Step(Circuit("argmax", 8, 1), (len(tensors),), len(tensors) + 1, "argmax"),
        ),
    )


@pytest.mark.parametrize(
    ("what", "public"),
    [
        ("rows and columns", image_of((1, 1 << 21, 1), (Gather(np.zeros(1, np.int32)), (1,)))),
        ("elements in all", image_of((64, 1024, 1024), (Gather(np.zeros(1, np.int32)), (1,)))),
        (
            "reads by local steps",
            image_of(
                (1, 4096, 4096),
                (SumPool((4096, 4096), (1, 1)), (1, 1, 1)),
                *[(SumPool((4000, 4000), (1, 1), (0, 0, 0, 0)), (1, 97, 97))] * 5,
                (Reshape(), (1,)),
            ),
        ),
        (
            "circuits of",
            PublicProgram(
                (TensorFormat((1, 1, 1 << 16), 3, 9), TensorFormat((1 << 16,), 3, 9), TensorFormat((1,), 0, 16)),
                (Step(Reshape(), (0,), 1, "flat"), Step(Circuit("argmax", 9, 0), (1,), 2, "argmax")),
            ),
        ),
        (
            "a padded map of 68736254976 elements",
            image_of((1024, 1, 1), (SumPool((1, 1), (4096, 4096), (4096,) * 4), (1024, 3, 3)), (Reshape(), (1024,))),
        ),
        (
            "a padded map of",
            image_of((1024, 1, 1), (Convolution((1, 1024, 1, 1), (4096, 4096), (4096,) * 4), (1, 3, 3))),
        ),
        (
            "reads by local steps",
            image_of((4, 1, 1), *[(SumPool((1, 1), (4096, 4096), (2000,) * 4), (4, 1, 1))] * 100, (Reshape(), (4,))),
        ),
        (
            "rows and columns under windows",
            image_of((1, 1, 1), *[(Convolution((1, 1, 1, 1), (4096, 1), (0, 4000, 0, 0)), (1, 1, 1))] * 300),
        ),
        ("a padding in range", image_of((1, 1, 1), (SumPool((1, 1), (1, 1), (1 << 16, 0, 0, 0)), (1, 65537, 1)))),
    ],
    ids=["sides", "elements", "reads", "circuits", "padded pool", "padded layer", "paddings", "listed", "padding"],
)
def test_a_short_file_cannot_name_endless_work(what: str, public: PublicProgram) -> None:
    assert len(public_to_bytes(public)) < 1 << 19
    with pytest.raises(RecipeError, match=what):
        check_public(public)


def test_padding_beyond_what_a_window_reaches_is_as_valid_as_in_pytorch() -> None:
    check_public(
        image_of(
            (512, 7, 7),
            (SumPool((1, 1), (1, 1), (3, 3, 3, 3)), (512, 13, 13)),
            (Convolution((1, 512, 1, 1), (1, 1), (9, 0, 0, 9)), (1, 16, 16)),
            (Convolution((1, 512, 31, 31), (1, 1), (15, 15, 15, 15)), (1, 7, 7)),
            (SumPool((2, 2), (1, 1), (-2, 1, 0, -3)), (512, 5, 3)),
            (Gather(np.zeros(1, np.int32)), (1,)),
        )
    )


def test_an_arg_max_of_a_million_classes_is_refused() -> None:
    size = 1_000_000
    public = PublicProgram(
        (TensorFormat((1, 1, size), 3, 9), TensorFormat((size,), 3, 9), TensorFormat((1,), 0, 20)),
        (Step(Reshape(), (0,), 1, "flat"), Step(Circuit("argmax", 8, 1), (1,), 2, "argmax")),
    )
    with pytest.raises(RecipeError, match="circuits of 28000000 bits"):
        check_public(public)


def test_weights_of_another_program_are_refused(program: Program) -> None:
    other = replace(program.public, steps=(replace(program.public.steps[0], name="x"), *program.public.steps[1:]))
    with pytest.raises(RecipeError, match="another program"):
        program_from_bytes(public_to_bytes(other), weights_to_bytes(program))


def test_weights_that_do_not_fit_are_refused(program: Program) -> None:
    public, secret = public_to_bytes(program.public), weights_to_bytes(program)
    name = next(name for name in load(secret) if name.endswith(".weight"))
    own = load(secret)[name]
    for arrays in (
        {name: own[:1].copy()},
        {name: own.astype(np.float32)},
        {"99.weight": own},
        {"0.other": own},
        {"00.weight": own},
    ):
        with pytest.raises(RecipeError):
            program_from_bytes(public, changed(secret, None, **arrays))


def test_foreign_bytes_are_refused() -> None:
    blob = public_to_bytes(TINY)
    long = save({"structure": np.full(MAX_STRUCTURE_BYTES + 1, 32, dtype=np.uint8)})
    deep = save({"structure": np.frombuffer(b"[" * 100_000, dtype=np.uint8)})
    header = (1 << 62).to_bytes(8, "little") + b"{}"
    for data in (b"", b"\x00" * 64, blob[:-3], blob + b"x", header, long, deep, save({}), hashlib.sha256(b"").digest()):
        with pytest.raises(RecipeError):
            public_from_bytes(data)


def test_tensors_that_no_step_makes_and_keys_that_stand_twice_are_refused() -> None:
    blob = public_to_bytes(TINY)
    text = load(blob)["structure"].tobytes().decode()
    structure = json.loads(text)
    many = json.dumps(structure | {"tensors": structure["tensors"] + structure["tensors"][-1:] * 100_000})
    for other in (
        many,
        text.replace('{"format"', '{"format":"x","format"', 1),
        text.replace('"steps"', '"s":NaN,"steps"'),
    ):
        assert other != text
        with pytest.raises(RecipeError, match="more tensors|stands twice|no number"):
            public_from_bytes(save({**load(blob), "structure": np.frombuffer(other.encode(), dtype=np.uint8)}))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_never_do_anything_but_refuse_or_read(data: st.DataObject) -> None:
    blob = bytearray(public_to_bytes(TINY))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        public_from_bytes(bytes(blob))
    except RecipeError:
        return
