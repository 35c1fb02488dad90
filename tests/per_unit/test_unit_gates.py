"""Gates at the weights that read units equal gates at activations, and masks equal what is cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from small import Small, images
from torch import Tensor, nn
from zoo import ZOO

import niwaki
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.networks.small import Perceptron, ResNet
from niwaki.per_unit.unit_gates import UnitGates, averaged_units
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import randomised
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import example_calls
from niwaki.verify import convert


class Inverted(nn.Module):
    """A MobileNet's block: 1x1, depthwise, squeeze and excite, 1x1; and a flattened end."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.down, self.up = nn.Linear(12, 5), nn.Linear(5, 12)
        self.project = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6 * 6 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.expand(x)))
        x = nn.functional.silu(self.norm2(self.depthwise(x)))
        x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))[:, :, None, None]
        return self.head(self.project(x).relu().flatten(1))


class Stream(nn.Module):
    """A residual stream of tokens that is read through an RMSNorm, with nothing tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(3))
        self.up, self.gate, self.down = nn.Linear(16, 20), nn.Linear(16, 20), nn.Linear(20, 16)
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.mix(self.norms[0](x).cumsum(1))
        y = self.norms[1](x)
        x = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return self.head(self.norms[2](x))


class Sigmoids(nn.Module):
    """A unit at zero is not zero behind the sigmoid: its readers are zeroed with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.first(x)))


def of_zoo(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (ZOO[name].build(), ZOO[name].inputs())


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "perceptron": lambda: (Perceptron(3, 1, (4, 4), (20, 12)), torch.randn(2, 1, 4, 4)),
    "resnet": lambda: (ResNet(3, 3, (8, 8), (8, 12)), torch.randn(2, 3, 8, 8)),
    "inverted": lambda: (Inverted(), torch.randn(2, 3, 6, 6)),
    "small": lambda: (Small(), images()),
    "sigmoids": lambda: (Sigmoids(), torch.randn(4, 5)),
    "stream": lambda: (Stream(), torch.randint(0, 11, (2, 7))),
    "mobilenet_v2": of_zoo("mobilenet_v2"),
    "timm_vit_tiny": of_zoo("timm_vit_tiny"),
    "llama": of_zoo("llama"),
    "gpt2": of_zoo("gpt2"),
}


class Case:
    """A network in float64 and eval mode, its space, and its outputs."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model, inputs = NETWORKS[name]()
        randomised(self.model)
        self.space = niwaki.search_space(self.model, inputs)
        self.model.double().eval()
        self.args, self.kwargs = convert(example_calls(inputs)[0], torch.float64)

    def run(self, model: nn.Module) -> Tensor:
        """All outputs in a row."""
        outputs = tensors_in(model(*self.args, **self.kwargs))
        return torch.cat([output.flatten() for output in outputs if output.is_floating_point()])

    def loss(self, model: nn.Module) -> Tensor:
        outputs = self.run(model)
        return (outputs * torch.linspace(-1, 1, len(outputs), dtype=torch.float64)).sum()

    def gates(self, low: float = 0.0) -> Tensor:
        return low + (1 - low) * torch.rand(self.space.num_units, dtype=torch.float64)


def close(mine: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    return float((mine - other).abs().max()) <= tolerance * float(other.abs().max())


def _before(by: Tensor, module: nn.Module, inputs: Any) -> Any:
    return inputs[0] * by, *inputs[1:]


def _after(by: Tensor, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * by


@contextmanager
def gated_activations(space: SearchSpace, gates: Tensor) -> Iterator[None]:
    """Hooks that multiply the inputs of the modules that read units by their gates; or, of units that enter a mean,
    the outputs of those that write them."""
    extended, averaged = torch.cat([gates, gates.new_ones(1)]), averaged_units(space)
    handles = []
    for whole in space.dims:
        module = space.model.get_submodule(whole.tensor.rpartition(".")[0])
        weight = space.model.get_parameter(whole.tensor) if whole.parameter else None
        factor = extended[torch.from_numpy(whole.units)].prod(1)
        means = averaged[whole.units[whole.units < space.num_units]].any()
        if weight is None or weight.dim() < 2 or isinstance(module, nn.utils.parametrize.ParametrizationList):
            continue
        by = factor.view((-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,))
        if whole.role.consumes and not means:
            handles.append(module.register_forward_pre_hook(partial(_before, by)))
        elif whole.role.produces and means:
            handles.append(module.register_forward_hook(partial(_after, by)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"small"}))
def test_gates_equal_gates_of_activations(name: str) -> None:
    """Outputs and the gradient by the gates. (A weight norm between a reader and its weight: see below.)"""
    case = Case(name)
    gates, soft = UnitGates(case.space), case.gates()
    with gated_activations(case.space, soft.requires_grad_()):
        outputs = case.run(case.model)
        (expected,) = torch.autograd.grad(case.loss(case.model), soft)
    assert close(gates.value(soft.detach(), case.run), outputs.detach())
    loss, gradient = gates.gradient(soft, case.loss)
    assert gradient is not None and close(gradient, expected)
    assert not loss.requires_grad and expected.abs().max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_equal_zeroed_and_cut_networks(name: str) -> None:
    case = Case(name)
    gates = UnitGates(case.space)
    for _ in range(1 if name in ZOO else 3):
        keep = case.gates().numpy() < 0.6
        for group in case.space.groups:
            keep[group.first] = True
        plan = case.space.plan(keep)
        mask = torch.from_numpy(case.space.keep_of(plan)).double()
        with torch.no_grad():
            masked, dense = gates.value(mask, case.run), case.run(case.model)
            assert close(masked, case.run(zeroed(case.model, plan)))
            small = niwaki.cut(case.model, plan)
            assert close(masked, case.run(small), 1e-6), "transformers' norms compute in float32"
            assert close(gates.zeroed(mask, case.run), masked)
        assert not close(masked, dense)


def test_readers_under_a_weight_norm_are_gated_at_their_direction() -> None:
    """Gates between 0 and 1 do not multiply activations then, but the gradient exists and masks are exact."""
    case = Case("small")
    gates = UnitGates(case.space)
    soft = case.gates()
    soft[8:] = 1
    with gated_activations(case.space, soft):
        outputs = case.run(case.model)
    assert close(gates.value(soft, case.run), outputs.detach()), "the residual stream has no weight norm"
    _, gradient = gates.gradient(torch.zeros_like(soft), case.loss)
    assert gradient is not None and bool(gradient[8:].any())


def test_nothing_of_the_model_changes() -> None:
    case = Case("resnet")
    gates = UnitGates(case.space)
    case.loss(case.model).backward()
    before = {name: (id(p), p.detach().clone(), p.grad) for name, p in case.model.named_parameters()}

    def failing(model: nn.Module) -> Tensor:
        case.loss(model)
        raise RuntimeError("no loss")

    gates.gradient(case.gates(), case.loss)
    with pytest.raises(RuntimeError, match="no loss"):
        gates.gradient(case.gates(), failing)
    for name, parameter in case.model.named_parameters():
        identity, value, gradient = before[name]
        assert id(parameter) == identity and torch.equal(parameter, value) and parameter.grad is gradient
        assert parameter.requires_grad


def test_a_loss_that_does_not_depend_on_gates_has_no_gradient() -> None:
    case = Case("perceptron")
    gates = UnitGates(case.space)
    bias = case.model.get_parameter("layers.5.bias")
    assert gates.gradient(case.gates(), lambda model: bias.sum())[1] is None
    assert gates.gradient(case.gates(), lambda model: case.loss(model).detach())[1] is None


def test_gradients_come_through_activation_checkpoints() -> None:
    """They run the model again in the backward pass, when the gated weights must still be there."""
    case = Case("perceptron")
    gates, soft = UnitGates(case.space), case.gates()
    layers = case.model.layers

    def checkpointed(model: nn.Module) -> Tensor:
        x = layers[:3](case.args[0])
        return torch.utils.checkpoint.checkpoint(layers[3:], x, use_reentrant=False).sum()

    def plain(model: nn.Module) -> Tensor:
        return model(case.args[0]).sum()

    mine, other = gates.gradient(soft, checkpointed)[1], gates.gradient(soft, plain)[1]
    assert mine is not None and other is not None and close(mine, other)


class Products(nn.Module):
    """The units of queries and keys meet in a product: no weight reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o((self.q(x) @ self.k(x).transpose(-1, -2)).softmax(-1) @ self.v(x))


class Spectral(nn.Module):
    """The reader is divided by its largest singular value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.second = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            Products,
            "The group 'q' cannot have gates: nothing reads its units linearly, so that no weight can be multiplied by "
            "them. Its units are q.weight dim 0: 1 position per unit (producer), q.bias dim 0: 1 position per unit "
            "(producer), k.weight dim 0: 1 position per unit (producer), k.bias dim 0: 1 position per unit (producer). "
            "Pin it with `ignored` when you build the search space, or use a method that scores units (niwaki.HESSO).",
        ),
        (Spectral, "The group 'first' cannot have gates: nothing reads its units linearly, so that no weight can"),
    ],
)
def test_groups_without_linear_readers_are_refused(build: Callable[[], nn.Module], says: str) -> None:
    space = niwaki.search_space(build(), torch.randn(2, 3, 5))
    with pytest.raises(MethodError, match=re.escape(says)):
        UnitGates(space)
