"""Runs without their arithmetic: the same record as with it, and code that looks for numbers gets them."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Image, Tokens, build, networks
from torch import Tensor, nn
from zoo import ZOO

from niwaki.trace import shape_only as hollow
from niwaki.trace.graph import Graph, Node, Ref
from niwaki.trace.shape_only import Hollow, ZeroPages
from niwaki.trace.tracer import example_calls, trace

aten = torch.ops.aten


def _facts(graph: Graph) -> list[object]:
    """What a trace tells, without the identity of its objects."""

    def told(argument: object) -> object:
        if isinstance(argument, Ref):
            value = graph.values[argument.value]
            return argument.value, value.shape, value.dtype, value.origin, value.name, value.root
        return tuple(map(told, argument)) if isinstance(argument, tuple) else argument

    def node(one: Node) -> object:
        named = {name: told(given) for name, given in one.kwargs.items()}
        return one.operator, told(one.args), named, one.outputs, one.location, one.call.numbers

    return [(run.training, run.outputs, str(run.error), [node(one) for one in run.nodes]) for run in graph.runs]


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a tensor is, it is left hollow."""
    monkeypatch.setattr(hollow, "_WORTH", 0)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(networks)
def test_random_networks_are_recorded_alike(spec: Image | Tokens) -> None:
    model, inputs = build(spec)
    calls = example_calls(inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hollow, "_WORTH", 0)
        assert _facts(trace(model, calls)) == _facts(trace(model, calls, arithmetic=True))


@pytest.mark.usefixtures("everything")
def test_single_channels_that_lie_together() -> None:
    """Images of one channel are contiguous in two arrangements; torch goes by the strides, and so does what follows."""

    class Rearranged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 1, 1)
            self.second, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            one = self.first(x).as_strided((2, 1, 6, 6), (36, 1, 6, 1)).clone()
            return self.last(nn.functional.adaptive_avg_pool2d(self.second(one), 1).flatten(1))

    model, calls = Rearranged(), example_calls(torch.randn(2, 3, 6, 6))
    assert _facts(trace(model, calls)) == _facts(trace(model, calls, arithmetic=True))


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "timm_vit_tiny", "bert", "llama"])
def test_known_networks_are_recorded_alike(name: str) -> None:
    model, calls = ZOO[name].build(), example_calls(ZOO[name].inputs())
    assert _facts(trace(model, calls)) == _facts(trace(model, calls, arithmetic=True))


class _Big(nn.Module):
    """Does something with the result of a large product, which is remembered."""

    def __init__(self, then: Callable[[Tensor], object] = lambda hidden: None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 300), nn.Linear(300, 2)
        self.then = then
        self.seen: dict[str, object] = {}

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.seen["hidden"] = hidden
        self.seen["answer"] = self.then(hidden)
        result: Tensor = self.last(hidden * 2 if self.seen["answer"] else hidden)
        return result


def _hidden(model: _Big) -> list[Tensor]:
    """What the forward passes of a trace computed."""
    found: SimpleQueue[Tensor] = SimpleQueue()  # a list would be put back
    model.register_forward_hook(lambda *_: found.put(model.seen["hidden"]))  # type: ignore[arg-type]
    trace(model, example_calls(torch.ones(8, 64)))
    return [found.get() for _ in range(found.qsize())]


def test_large_products_are_not_computed_unless_asked_for() -> None:
    assert not any(bool(hidden.any()) for hidden in _hidden(_Big()))
    assert all(bool(hidden.any()) for hidden in _hidden(_Big(lambda hidden: bool(hidden.any())))[-2:])


def _swallowing(hidden: Tensor) -> bool:
    """Goes on without the number that it asked for."""
    try:
        return bool(hidden.abs().sum() > 0)
    except RuntimeError:
        return False


@pytest.mark.parametrize(
    "then",
    [
        lambda hidden: bool(hidden.abs().max() > 0),
        lambda hidden: hidden.sum().item() != 0,
        lambda hidden: len(hidden.nonzero()) > 0,
        lambda hidden: len(hidden[hidden != 0]) > 0,
        lambda hidden: bool(np.any(hidden.numpy())),
        lambda hidden: bool(np.any(np.asarray(hidden))),
        lambda hidden: any(hidden[0].tolist()),
        lambda hidden: not torch.equal(hidden, torch.zeros_like(hidden)),
        lambda hidden: bool(hidden.view(-1)[5:9].clone().any()),
        lambda hidden: bool(torch.zeros(8, 300).add_(hidden).any()),
        lambda hidden: bool(torch.stack([hidden, hidden]).unbind()[1].any()),
        lambda hidden: hidden.to_sparse().values().numel() > 0,
        lambda hidden: c_float.from_address(hidden.data_ptr()).value != 0,
        _swallowing,
    ],
)
def test_code_that_looks_gets_the_numbers(then: Callable[[Tensor], object]) -> None:
    model = _Big(then)
    graph = trace(model, example_calls(torch.ones(8, 64)))
    operators = {node.operator for node in graph.runs[0].nodes}
    assert aten.mul.Tensor in operators, "the way that the model takes when there are numbers"


_LAYOUTS = {
    "contiguous": lambda tensor: tensor.contiguous(),
    "transposed": lambda tensor: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
    "channels last": lambda tensor: (
        tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()
    ),
    "sliced": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
}


def _arguments(
    operator: torch._ops.OpOverload, layout: Callable[[Tensor], Tensor], training: bool
) -> tuple[object, ...]:
    def made(*shape: int) -> Tensor:
        return layout(torch.rand(*shape))

    one = torch.rand(6)
    if operator is aten.convolution.default:
        return made(2, 6, 9, 9), made(4, 3, 3, 3), None, [2, 1], [1, 1], [1, 1], False, [0, 0], 2
    if operator is aten.native_batch_norm.default:
        return made(2, 6, 5, 5), one, one, one.clone(), one.clone(), training, 0.1, 1e-5
    if operator is aten.max_pool2d_with_indices.default:
        return made(2, 6, 9, 9), [3, 3], [2, 2], [1, 1]
    if operator is aten._scaled_dot_product_flash_attention_for_cpu.default:
        return made(2, 3, 5, 8), made(2, 3, 5, 8), made(2, 3, 5, 8)
    if operator is aten._native_multi_head_attention.default:
        x = made(2, 5, 6)
        return x, x, x, 6, 2, torch.rand(18, 6), torch.rand(18), torch.rand(6, 6), one, None, training
    shapes = {
        aten.mm.default: ((4, 6), (6, 5)),
        aten.addmm.default: ((5,), (4, 6), (6, 5)),
        aten.bmm.default: ((2, 4, 6), (2, 6, 5)),
        aten.baddbmm.default: ((2, 4, 5), (2, 4, 6), (2, 6, 5)),
    }.get(operator)
    if shapes is None:
        tensors = sum(argument.type.isSubtypeOf(torch._C.TensorType.get()) for argument in operator._schema.arguments)
        shapes = ((2, 6, 5, 5),) * tensors
    return tuple(made(*shape) if len(shape) > 1 else torch.rand(*shape) for shape in shapes)


@settings(deadline=None, max_examples=300)
@given(
    operator=st.sampled_from(sorted(hollow.OPERATORS, key=str)),
    layout=st.sampled_from(sorted(_LAYOUTS)),
    training=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_hollow_results_are_arranged_as_real_ones(
    operator: torch._ops.OpOverload, layout: str, training: bool, dtype: torch.dtype
) -> None:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(hollow, "_WORTH", 0)
        given = [
            one.to(dtype) if isinstance(one, Tensor) else one
            for one in _arguments(operator, _LAYOUTS[layout], training)
        ]
        made = Hollow().result(operator, given, {}, True)
        real = operator(*given)
    if made is not None:
        pairs = zip(made, real, strict=True) if isinstance(real, tuple) else [(made, real)]
        for ours, theirs in pairs:
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
    elif layout == "contiguous":
        assert operator is aten._native_multi_head_attention.default and training, "it runs, which takes time"


def test_zeros_have_no_memory_in_common() -> None:
    zeros = ZeroPages()
    shapes = [((3, 5), (5, 1)), ((), ()), ((2, 0), (1, 1)), ((4, 6, 2), (12, 1, 6)), ((2**24,), (1,)), ((7,), (1,))]
    made = [
        zeros.tensor(shape, stride, dtype, torch.device("cpu"))
        for shape, stride in shapes * 2
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    ]
    for number, tensor in enumerate(made):
        assert (tensor.shape, tensor.stride()) == shapes[number // 3 % len(shapes)]
        assert tensor.storage_offset() == 0
        tensor += number + 1
    for number, tensor in enumerate(made):
        assert (tensor == (torch.zeros((), dtype=tensor.dtype) + number + 1)).all()
