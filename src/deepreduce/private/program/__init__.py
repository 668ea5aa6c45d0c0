"""A network as a program of linear steps and ReLUs in fixed point, and everything that makes one.

    program = make_program(network, calibration_images)
    client_file, server_file = public_to_bytes(program.public), weights_to_bytes(program)

**What the protocol needs to know.** A `PublicProgram` is a list of tensors (`TensorFormat`: shape for one image,
fraction bits, ring bits k) and a list of steps (`Step`); both parties have it. Tensor 0 is the image; step n makes
tensor n + 1 from tensors made before. The server also has `Program.weights`: by tensor id, a weight and a bias.

Every tensor is shared: server + client = value mod 2^k, k its `ring_bits`. Where a step reads a tensor whose ring is
larger than it needs, each party takes its share mod the smaller power of two.

*Linear steps* (`step.circuit is None`) are computed mod 2^k for the ring of their *output*, by each party on its own
share (`LinearEvaluator`); the server alone adds the bias. `step.weighted` ones (`Convolution`, `Matrix`) need the
secret weights `program.weights[step.output].weight`: the client's part of them is what the homomorphic phase computes,

    for step in public.steps:
        if step.weighted:
            x_C reduced mod 2^k, k = public.tensors[step.output].ring_bits
            the client learns W·x_C - s mod 2^k: its share of tensor step.output; the server keeps s
            online the server computes W·x_S + s + bias mod 2^k: its share

`Convolution.padding` has four numbers (top, bottom, left, right), negative ones cut rows and columns away. All other
linear steps (`SumPool`, `Sum`, `Concatenate`, `Reshape`, `Gather`) are local, and so is `Truncation`, which counts
among them: each party divides its own share (`ring.truncate_server`, `ring.truncate_client`), and the output's ring may
be larger than the input's.

*Circuits* (`step.circuit`, see `Circuit`) are all that is not linear: the input tensor's shares, k_in = its ring bits,
first lose `dropped` low bits (`ring.drop_server`, `ring.drop_client`: the server adds 2^dropped - 1 before), then all
but `width` low bits. Their sum mod 2^width is read as a signed number t; f is the `kind` (`relu`, `rescale`, and
`argmax` as the very last step), and what comes out is f(t) - r mod 2^k_out, k_out = ring bits of the output tensor, r
the client's fresh mask there. With `kept` only those elements take part; the others follow `rest_in_circuit`. A `relu`
with `tested` is no circuit to the protocol: its sign is looked up by the upper bits alone, and what comes out is
`rectified`. All other functions, maxima and ReLU6, are made of ReLUs (`lowering`).

`public.rounds()` groups all this: linear steps, then circuits that travel in one message each way.

Rooms: `convert` (with `operators`, `windows`, `pooling`, `movements`) makes a `Graph` of a traced network; `fold` and
`merge` (with `compose`) rewrite it, `lowering` makes ReLUs of maxima, `tune` merges more where that saves refreshes,
and `equalise` scales channels; `plan` chooses where rings are refreshed (`refreshes`), by what `formats` says that
costs, which asks `masking` what may be truncated; `build` puts it all together; `program` is the result, `evaluate`
computes with it, `check` and `files` carry it from one machine to another.

Making a program takes PyTorch, and running one does not: `make_program` is imported when it is first used, so that the
two parties need not wait for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .check import check_public, check_weights
from .evaluate import LinearEvaluator, circuit_function, rectified, working_bytes
from .files import program_from_bytes, public_from_bytes, public_to_bytes, weights_to_bytes
from .operations import (
    Circuit,
    Concatenate,
    Convolution,
    Gather,
    Matrix,
    Operation,
    Reshape,
    Sum,
    SumPool,
    Truncation,
)
from .program import (
    Agreement,
    FormatReport,
    Program,
    PublicProgram,
    Round,
    Step,
    TensorFormat,
    Weights,
    is_argmax,
)
from .settings import FormatSettings

if TYPE_CHECKING:
    from .build import make_program


def __getattr__(name: str) -> Any:
    if name != "make_program":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .build import make_program

    return make_program


__all__ = [
    "Agreement",
    "Circuit",
    "Concatenate",
    "Convolution",
    "FormatReport",
    "FormatSettings",
    "Gather",
    "LinearEvaluator",
    "Matrix",
    "Operation",
    "Program",
    "PublicProgram",
    "Reshape",
    "Round",
    "Step",
    "Sum",
    "SumPool",
    "TensorFormat",
    "Truncation",
    "Weights",
    "check_public",
    "check_weights",
    "circuit_function",
    "is_argmax",
    "make_program",
    "program_from_bytes",
    "public_from_bytes",
    "public_to_bytes",
    "rectified",
    "weights_to_bytes",
    "working_bytes",
]
