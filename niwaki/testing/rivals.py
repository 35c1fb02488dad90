"""The cut and the zeroed network of one plan, side by side: how far their outputs and their gradients are apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.names import named_parameters
from niwaki.core.plan import Plan
from niwaki.core.precision import doubled
from niwaki.core.renaming import Renaming
from niwaki.surgery.cut import cut, duplicate
from niwaki.surgery.zero import zero_out
from niwaki.trace.structures import ExampleCall, tensors_in
from niwaki.verify import TOLERANCE, convert, difference

GRADIENT_TOLERANCE = 1e-8
_SHAKE = 1e-15  # a few units in the last place
_AMPLIFIED = 10.0  # round-off of a whole pass, in multiples of one change of that size
_DROPPING = ("p", "drop_rate", "drop_prob", "drop_path_prob", "drop_path_rate", "drop_path", "layerdrop", "scale_prob")


@dataclass(frozen=True, slots=True)
class Deviation:
    """The largest deviation between two networks, relative to the largest entry, and the parameter it was found in
    (empty for outputs). ``precision`` is the type the two were compared in. ``noise``: how far the reference is from
    itself after its parameters change by a few units in the last place; found out only for a large deviation."""

    deviation: float
    parameter: str = ""
    precision: torch.dtype = torch.float64
    noise: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Whether the deviation is allowed, or no larger than what round-off does to the reference itself.

        A BatchNorm over two values has gradients that consist of round-off.
        """
        return self.deviation <= max(tolerance, _AMPLIFIED * self.noise)


class Rivals:
    """The cut and the zeroed network that one plan makes of a model, in float64, and their comparison.

    Beside the model there is one copy of it, the zeroed network, and the smaller cut one (`small`); gradients are held
    only as far as they are compared. With ``consume`` not even that: the model given becomes the zeroed network, for
    one that memory holds once.
    """

    def __init__(self, model: nn.Module, plan: Plan, consume: bool = False) -> None:
        self._model, self._plan = None if consume else model, plan
        self._names = Renaming.of(plan)
        self.refusal = ""
        dense = (model if consume else duplicate(model)).train().double()
        self.small = cut(dense, plan)
        self._zero = zero_out(dense, plan)

    def outputs(self, call: ExampleCall) -> Deviation:
        """How far the outputs in eval mode are apart; in the model's own precision where it does not run in float64.

        Raises:
            RuntimeError, TypeError: the cut network does not run; or neither does the zeroed one.
        """
        small, zero = self.small.eval(), self._zero.eval()
        dtype: torch.dtype | None = torch.float64
        try:
            reference = _outputs(zero, call, dtype)
        except (RuntimeError, TypeError):  # a constant of another type inside, or an operator without float64
            if self._model is None:
                raise
            dense, dtype = duplicate(self._model).eval(), None
            small, zero = cut(dense, self._plan), zero_out(dense, self._plan)
            reference = _outputs(zero, call, dtype)
        found = difference(_outputs(small, call, dtype), reference)
        precision = next((tensor.dtype for tensor in reference if tensor.is_floating_point()), torch.float64)
        noise = 0.0
        if TOLERANCE.get(precision, 0.0) < found < float("inf") and dtype is not None:
            noise = difference(_outputs(_shaken(duplicate(zero)), call, dtype), reference)
        return Deviation(found, precision=precision, noise=noise)

    def gradients(self, call: ExampleCall) -> Deviation | None:
        """How far the gradients of the kept parameters are apart in train mode, dropout and drop-path off.

        The loss is a random combination of all floating-point outputs. None where the zeroed network itself does not
        run in train mode in float64, or gives no gradient to any parameter; `refusal` says which.
        """
        small, zero = (without_randomness(network.train()) for network in (self.small, self._zero))
        try:
            expected = self._of_kept(_gradients(zero, call, self._kept))
        except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError, AttributeError) as cause:
            self.refusal = f"{type(cause).__name__}: {cause}"
            return None
        if not expected:
            self.refusal = "no parameter gets a gradient"
            return None
        ours = _gradients(small, call, _whole)
        found = _largest(ours, expected)
        if found.deviation > GRADIENT_TOLERANCE and found.deviation < float("inf"):
            shaken = self._of_kept(_gradients(_shaken(duplicate(zero)), call, self._kept))
            return replace(found, noise=_largest(shaken, expected).deviation)
        return found

    def _of_kept(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of parameters that the cut network has, by their names there."""
        named = ((self._names.after(name), gradient) for name, gradient in gradients.items())
        return {name: gradient for name, gradient in named if name is not None}

    def _kept(self, name: str, gradient: Tensor) -> Tensor:
        return self._plan.change_of(name).of_gradient(gradient)


def without_randomness(model: nn.Module) -> nn.Module:
    """Dropout and drop-path off, so that two networks can be compared in train mode. In place."""
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, float) and (name in _DROPPING or "dropout" in name):
                setattr(module, name, 0.0)
    return model


def _largest(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Deviation:
    odd = sorted(set(expected) ^ set(ours))
    if odd:
        return Deviation(float("inf"), odd[0])
    scale = max((float(gradient.abs().max()) for gradient in expected.values() if gradient.numel()), default=0.0)
    worst = Deviation(0.0)
    for name, gradient in expected.items():
        if gradient.shape != ours[name].shape or not torch.equal(gradient.isnan(), ours[name].isnan()):
            return Deviation(float("inf"), name)
        gap = float((gradient - ours[name]).nan_to_num(0, 0, 0).abs().max()) if gradient.numel() else 0.0
        relative = gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf"))
        if relative > worst.deviation:
            worst = Deviation(relative, name)
    return worst


def _shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) - 0.5
            parameter.mul_(1 + _SHAKE * noise.to(parameter.device))
    return model


@contextmanager
def _drawing_alike() -> Iterator[None]:
    """What a model draws at random, even in eval mode, every network draws alike; nothing is used up."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _outputs(model: nn.Module, call: ExampleCall, dtype: torch.dtype | None) -> list[Tensor]:
    args, kwargs = convert(call, dtype)
    with torch.no_grad(), _drawing_alike(), doubled() if dtype is not None else nullcontext():
        return list(tensors_in(model(*args, **kwargs)))


def _whole(name: str, gradient: Tensor) -> Tensor:
    return gradient


def _gradients(model: nn.Module, call: ExampleCall, kept: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """What is ``kept`` of each gradient, which is gone as soon as the backward pass has got past it."""
    args, kwargs = convert(call, torch.float64)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}

    def collect(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, parameter.grad = kept(name, parameter.grad), None
            found[name] = found[name] + gradient if name in found else gradient

        return take

    with ExitStack() as stack:
        for name, parameter in named_parameters(model):
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(collect(name))  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
        for context in (torch.enable_grad(), _drawing_alike(), doubled()):
            stack.enter_context(context)
        floating = [out for out in tensors_in(model(*args, **kwargs)) if out.is_floating_point() and out.requires_grad]
        terms = [(out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in floating]
        if terms:
            torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    return found
