"""Every operator against PyTorch, alone and in user networks of all styles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepreduce.errors import NetworkError
from deepreduce.private.program import Circuit, Convolution, Matrix, Sum, SumPool, make_program
from deepreduce.private.program.convert import convert
from deepreduce.private.program.fold import fold, simplify
from deepreduce.private.program.merge import merge
from deepreduce.private.twin import Twin

from .small import FINE, Lambda, agree, images, reference, settle


def exact(network: nn.Module, batch: Tensor) -> None:
    """Hold the graph, as converted, folded and merged, against PyTorch in float64."""
    graph = convert(network, tuple(batch.shape[1:]))
    expected = reference(network, batch)
    rewritings: list[Callable[[], None]] = [
        lambda: None,
        lambda: fold(graph, batch.double()),
        lambda: simplify(graph),
        lambda: merge(graph),
    ]
    for rewrite in rewritings:
        rewrite()
        got = graph.run(batch.double())[graph.output].numpy()
        assert np.abs(got - expected).max() <= 1e-9 * max(1.0, np.abs(expected).max())


def head(function: Callable[..., Tensor], **layers: nn.Module) -> nn.Module:
    """Put a flattened output behind a function of feature maps."""
    return Lambda(lambda net, x: torch.flatten(function(net, x), 1), **layers)


def test_a_user_network_with_functions_and_shared_relus_agrees() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.bn = nn.BatchNorm2d(8)
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.relu = nn.ReLU(inplace=True)  # called twice
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.bn(self.conv1(x)))
            y = self.relu(self.conv2(x))
            y += x
            z = torch.cat([F.max_pool2d(y, 2), F.avg_pool2d(F.relu6(y), 2)], 1)
            z = z.clamp(min=0).mean((2, 3))
            return self.fc(z.view(z.size(0), -1))

    batch = images(32, 3, 8, 8)
    program = agree(settle(Net(), batch), batch)
    kinds = [step.circuit.kind for step in program.public.steps if step.circuit is not None]
    assert kinds[:-1] == ["relu"] * len(kinds[:-1]) and kinds[-1] == "argmax"
    assert len(kinds) == 3 + 2 + 2 + 1  # a window of 2x2 is decided in two levels, and a ReLU6 by two ReLUs


def test_a_constant_for_each_channel_goes_into_its_neighbour() -> None:
    scale = nn.Conv2d(4, 4, 1, groups=4)
    for layers in ([scale, nn.Conv2d(4, 5, 3)], [nn.Conv2d(4, 4, 3), scale], [nn.ReLU(), scale, nn.Conv2d(4, 5, 1)]):
        network = head(lambda net, x: net.layers(x), layers=nn.Sequential(*layers))
        exact(network, images(3, 4, 6, 6))
        graph = convert(network, (4, 6, 6))
        fold(graph, images(3, 4, 6, 6).double())
        assert sum(isinstance(node.op, Convolution) for node in graph.order()) == 1
    for other in (nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(4, 4, 1, 2, groups=4), nn.Conv2d(4, 4, 1, 1, 1, groups=4)):
        exact(head(lambda net, x: net.layers(x), layers=other), images(3, 4, 6, 6))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 2, 4]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    same = draw(st.booleans())
    layer = nn.Conv2d(
        4,
        4 * draw(st.integers(1, 2)),
        kernel,
        stride=1 if same else draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding="same" if same else draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    exact(head(lambda net, x: net.layer(x), layer=layer), images(3, 4, 7, 9))


POOLS: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.avg_pool2d(x, 2),
    lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False),
    lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    lambda x: F.avg_pool2d(x, (3, 2), (2, 3), divisor_override=5),
    lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    lambda x: F.adaptive_avg_pool2d(x, (11, 7)),
    lambda x: x.mean((2, 3), keepdim=True),
    lambda x: F.max_pool2d(x, 2),
    lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    lambda x: F.max_pool2d(x, 2, stride=1, dilation=2),
    lambda x: F.adaptive_max_pool2d(x, (3, 2)),
]


@pytest.mark.parametrize("number", range(len(POOLS)))
def test_pools(number: int) -> None:
    exact(head(lambda net, x: POOLS[number](x)), images(3, 2, 7, 9))


MOVES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], 4 * 36),
    lambda x: x[:, :, ::2, ::2],
    lambda x: F.pad(x, (1, 0, 2, 1)),
    lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)),
    lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1),
    lambda x: x.view(x.size(0), 2, 2, 6, 6).transpose(1, 2).reshape(x.size(0), 4, 6, 6),
    lambda x: F.pixel_shuffle(x, 2),
    lambda x: x.permute(0, 2, 3, 1),
    lambda x: x.flip(3),
    lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"),
    lambda x: nn.functional.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, size=(9, 5), mode="nearest-exact"),
    lambda x: x.roll((1, 2), (1, 3)).repeat(1, 2, 1, 1),
    lambda x: torch.stack([x[:, :2], x[:, 2:]], dim=2).flatten(1, 2),
    lambda x: torch.stack([x.mean((2, 3)), x.mean((2, 3))], -1).flatten(1),
    lambda x: x.swapaxes(1, 2).narrow(3, 1, 4).select(1, 2).unsqueeze(1),
    lambda x: torch.cat(torch.unbind(x.unflatten(1, (2, 2)), 1), 1),
    lambda x: x.index_select(1, torch.tensor([3, 0, 0])),
    lambda x: torch.repeat_interleave(x, 2, dim=1),
]

SUMS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.sum((2, 3)),
    lambda x: x.sum((-1, -2), keepdim=True),
    lambda x: x.mean(1),
    lambda x: torch.sum(x, 1, keepdim=True),
    lambda x: x.mean(3),
    lambda x: torch.mean(x, (1, 2)),
    lambda x: x.sum((1, 2, 3), keepdim=True),
    lambda x: torch.stack([x, 2 * x, x.flip(2)], dim=1).sum(1),
    lambda x: torch.stack([x, -x], 4).mean(4),
    lambda x: x.flatten(1).mean(1, keepdim=True),
]


@pytest.mark.parametrize("number", range(len(MOVES)))
def test_moves(number: int) -> None:
    exact(head(lambda net, x: MOVES[number](x)), images(3, 4, 6, 6))


@pytest.mark.parametrize("number", range(len(SUMS)))
def test_sums(number: int) -> None:
    exact(head(lambda net, x: SUMS[number](x)), images(3, 4, 6, 6))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 0), "same"])
def test_convolutions_with_a_border_of_their_own(mode: str, padding: Any) -> None:
    layer = nn.Conv2d(4, 3, (3, 2), padding=padding, padding_mode=mode, dilation=(1, 2))
    exact(head(lambda net, x: net.layer(x), layer=layer), images(3, 4, 6, 6))


@pytest.mark.parametrize("module", [nn.ReflectionPad2d(1), nn.ReplicationPad2d((1, 0, 2, 1)), nn.Upsample(None, 3)])
def test_modules_that_copy(module: nn.Module) -> None:
    exact(head(lambda net, x: net.module(x), module=module), images(3, 4, 6, 6))


PRODUCTS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, w: x @ w,
    lambda x, w: torch.matmul(x, w),
    lambda x, w: x.mm(mat2=w),
    lambda x, w: torch.addmm(w[0], x, w),
    lambda x, w: torch.addmm(w[0, :1], mat1=x, mat2=w),
    lambda x, w: F.linear(input=x, weight=w.transpose(0, 1)),
]


@pytest.mark.parametrize("number", range(len(PRODUCTS)))
def test_products_with_a_constant_matrix(number: int) -> None:
    holder = nn.Linear(5, 16)
    exact(Lambda(lambda net, x: PRODUCTS[number](x.flatten(1), net.f.weight), f=holder), images(3, 1, 4, 4))


def test_a_network_with_copies_stacks_and_sums_agrees() -> None:
    """Branches of two resolutions, as in HRNet, put together by a stack; channels summed; a border of its own pixels."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.first(x))
        coarse = F.interpolate(F.relu(net.coarse(x)), scale_factor=2)
        x = F.relu(torch.stack([net.fine(x), coarse], dim=2).sum(2))
        x = torch.stack([x, x.flip(3), coarse], dim=1).mean(1)
        return torch.cat([x.sum((2, 3)), x.mean(1).flatten(1) @ net.last.weight], 1)

    torch.manual_seed(0)
    net = Lambda(
        run,
        first=nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        coarse=nn.Conv2d(6, 6, 2, stride=2),
        fine=nn.Conv2d(6, 6, 3, padding=1, padding_mode="replicate"),
        last=nn.Linear(4, 64),
    )
    agree(net.eval(), images(40, 3, 8, 8))


def shuffled(x: Tensor) -> Tensor:
    """The channel shuffle of ShuffleNet, as torchvision writes it."""
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, -1, h, w)


@pytest.mark.parametrize("merge", [True, False])
def test_views_of_more_dimensions_that_are_taken_back(merge: bool) -> None:
    """Nothing of four dimensions is left for the file that clients get."""
    net = Lambda(
        lambda net, x: net.fc(
            shuffled(torch.cat([shuffled(net.c(x)).chunk(2, 1)[1] + 1, net.c(x)[:, :2]], 1)).flatten(1)
        ),
        c=nn.Conv2d(4, 4, 3, padding=1),
        fc=nn.Linear(64, 3),
    )
    batch = images(6, 4, 4, 4)
    program = make_program(net, batch, settings=replace(FINE, merge=merge))
    assert max(len(form.shape) for form in program.public.tensors) == 3
    with torch.no_grad():
        assert np.array_equal(Twin(program).run(batch.double().numpy()).labels, net(batch).argmax(1).numpy())


def test_a_view_of_more_dimensions_that_stays_is_refused_with_its_place() -> None:
    net = Lambda(lambda net, x: net.fc(F.relu(x.view(x.size(0), 2, 2, 4, 4)).flatten(1)), fc=nn.Linear(64, 3))
    with pytest.raises(NetworkError, match=r"at most 3 dimensions.*Got: 2x2x4x4"):
        make_program(net, images(4, 4, 4, 4))


SOFTMAX: list[tuple[Callable[..., Tensor], dict[str, nn.Module]]] = [
    (lambda net, x: F.log_softmax(net.fc(x.flatten(1)), dim=1), {}),
    (lambda net, x: F.softmax(net.fc(x.flatten(1)), 1), {}),
    (lambda net, x: net.fc(x.flatten(1)).log_softmax(-1), {}),
    (lambda net, x: net.s(net.fc(x.flatten(1))), {"s": nn.LogSoftmax(dim=1)}),
]


@pytest.mark.parametrize(("function", "layers"), SOFTMAX)
def test_a_softmax_at_the_end_is_left_out(function: Callable[..., Tensor], layers: dict[str, nn.Module]) -> None:
    """The class is the same without it; the logits are those in front of it."""
    net = Lambda(function, fc=nn.Linear(12, 5), **layers)
    batch = images(8, 3, 2, 2)
    program = make_program(net, batch, settings=FINE)
    answers = Twin(program).run(batch.double().numpy())
    with torch.no_grad():
        assert np.array_equal(answers.labels, net(batch).argmax(1).numpy())
        assert np.abs(answers.logits - net.fc(batch.flatten(1)).numpy()).max() < 0.01


ARITHMETIC: list[Callable[[Tensor], Tensor]] = [
    lambda x: x + x,
    lambda x: x - 0.5 * x,
    lambda x: 1 - x,
    lambda x: -x / 3 + 0.25,
    lambda x: torch.add(x, 2.0),
    lambda x: x * torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1, 1),
    lambda x: (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1),
    lambda x: F.dropout(x, 0.5, False),
    lambda x: torch.clamp(x, min=0.0),
    lambda x: F.hardtanh(x, 0.0, 6.0),
    lambda x: x.relu_() + 1,
]


@pytest.mark.parametrize("number", range(len(ARITHMETIC)))
def test_arithmetic(number: int) -> None:
    exact(head(lambda net, x: ARITHMETIC[number](x)), images(3, 3, 4, 4))


def test_batch_norm_in_all_places() -> None:
    """Behind a convolution, in front of one with padding, in front of a ReLU with negative scales, on a vector."""
    net = head(
        lambda net, x: net.last(net.fc(torch.flatten(net.c2(net.b2(F.relu(net.b3(net.b1(net.c1(x)) + x)))), 1))),
        c1=nn.Conv2d(3, 3, 3, padding=1),
        b1=nn.BatchNorm2d(3),
        b2=nn.BatchNorm2d(3),
        b3=nn.BatchNorm2d(3),
        c2=nn.Conv2d(3, 4, 3, padding=1),
        fc=nn.Linear(100, 6),
        last=nn.BatchNorm1d(6),
    )
    batch = images(6, 3, 5, 5)
    settle(net, batch)
    with torch.no_grad():
        net.b3.weight.copy_(torch.tensor([1.2, -0.8, 0.0]))
        net.b2.weight.copy_(torch.tensor([0.7, -0.8, 0.4]))
    exact(net, batch)


def test_pre_activation_leaves_no_multiplication_in_front_of_the_relu() -> None:
    net = head(
        lambda net, x: net.c2(F.relu(net.bn(net.c1(x) + x))),
        c1=nn.Conv2d(3, 3, 3, padding=1),
        bn=nn.BatchNorm2d(3),
        c2=nn.Conv2d(3, 4, 1),
    )
    batch = images(6, 3, 5, 5)
    settle(net, batch)
    graph = convert(net, (3, 5, 5))
    fold(graph, batch.double())
    relu = next(node for node in graph.order() if isinstance(node.op, Circuit))
    assert isinstance(relu.inputs[0].op, Sum)
    exact(net, batch)


def test_max_and_relu_become_one_circuit_in_either_order() -> None:
    for function in (lambda net, x: F.max_pool2d(F.relu(x), 2), lambda net, x: F.relu6(F.max_pool2d(x, 2))):
        graph = convert(head(function), (2, 6, 6))
        fold(graph, images(2, 2, 6, 6).double())
        kinds = [node.op.kind for node in graph.order() if isinstance(node.op, Circuit)]
        assert kinds in (["max_relu"], ["max_relu6"])
        exact(head(function), 4 * images(4, 2, 6, 6))


def test_the_divisor_of_global_pooling_goes_into_the_classifier() -> None:
    net = Lambda(lambda net, x: net.fc(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1)), fc=nn.Linear(3, 4))
    graph = convert(net, (3, 6, 6))
    fold(graph, images(2, 3, 6, 6).double())
    pool = next(node for node in graph.order() if isinstance(node.op, SumPool))
    assert pool.factor == 1
    assert any(isinstance(node.op, Matrix) for node in graph.order())
    exact(net, images(3, 3, 6, 6))


def test_masks_keep_what_they_name() -> None:
    mask = np.zeros((3, 4, 4), dtype=bool)
    mask[1, :2] = True
    graph = convert(Lambda(lambda net, x: F.relu(x).flatten(1)), (3, 4, 4), masks={"net:relu": mask})
    batch = images(2, 3, 4, 4).double()
    got = graph.run(batch)[graph.output].reshape(2, 3, 4, 4)
    assert torch.equal(got, torch.where(torch.from_numpy(mask), batch.clamp_min(0), batch))
