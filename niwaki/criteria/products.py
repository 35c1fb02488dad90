"""Products of the Hessian of a loss with vectors: exact ones, by differentiating twice, or differences of gradients."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from niwaki.core.scalars import is_number
from niwaki.errors import MethodError, UnknownName, first_line


@dataclass(frozen=True, slots=True)
class ProbeProgress:
    """How far the estimate of a trace is.

    ``batch``: the number of the batch, from 0. ``probe``: probes of this batch so far, of ``probes`` at most.
    ``stability``: the estimated rank correlation of the present scores with those of infinitely many probes, from the
    correlation r of two estimates by half of the probes each: sqrt(2r / (1 + r)).
    """

    batch: int
    probe: int
    probes: int
    stability: float


@dataclass(frozen=True, slots=True)
class SecondDerivatives:
    """How criteria of curvature get their products with the Hessian.

    ``by``: ``"backward"`` differentiates the gradient, which is exact; a probe costs about two forward and backward
    passes, and the graph of the gradient has to be held. ``"differences"`` shifts the weights a little along the probe
    and takes the difference of two gradients: a probe costs one forward and backward pass in the memory of one, and no
    operator needs a second derivative. It sees the kinks of ReLUs that the shift crosses, too.

    ``stable``: stop the probes of a batch once `ProbeProgress.stability` has reached it; None takes all probes.
    ``progress``: called after every probe; `niwaki.report.ProbeBar` shows a bar.

    Example:
        >>> SecondDerivatives(by="differences", stable=0.98).by
        'differences'
    """

    by: Literal["backward", "differences"] = "backward"
    stable: float | None = None
    progress: Callable[[ProbeProgress], None] | None = None

    def __post_init__(self) -> None:
        if self.by not in ("backward", "differences"):
            raise UnknownName(f"by={self.by!r} is not a way to second derivatives: choose 'backward' or 'differences'.")
        if self.stable is not None and not (is_number(self.stable) and 0 < self.stable <= 1):
            raise MethodError(
                f"stable={self.stable!r} must be a rank correlation above 0 and up to 1, such as 0.98, or None."
            )


class HessianProducts(ABC):
    """The gradient of a loss by parameters, and products of its Hessian. ``gradients``: without a graph; None where the
    loss does not depend on a parameter."""

    gradients: Mapping[str, Tensor | None]

    @abstractmethod
    def of(self, probe: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """H v, by the name of the parameter, for the vector v that is ``probe`` in these parameters and zero in all
        others. H is that of these parameters alone."""


@final
class ExactProducts(HessianProducts):
    """Products by differentiating the gradient of ``loss``. ``name``: the criterion, for errors."""

    def __init__(self, loss: Tensor, parameters: Mapping[str, Tensor], name: str) -> None:
        self._parameters, self._name, self._loss = parameters, name, loss
        once = sorted(found.__name__ for found in _python_functions(loss) if _is_once_differentiable(found))
        if once:  # torch says so in backward(), but not to those who ask for gradients by some tensors alone
            raise self._without(f" ({', '.join(once)}): its backward is marked with @once_differentiable")
        with self._explained():
            values = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, create_graph=True)
        found = dict(zip(parameters, values, strict=True))
        self.gradients = {key: None if value is None else value.detach() for key, value in found.items()}
        self._with_graph = {key: value for key, value in found.items() if value is not None and value.requires_grad}

    def of(self, probe: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = [name for name in probe if name in self._with_graph]
        found = {name: torch.zeros_like(self._parameters[name]) for name in probe}
        if not names:
            return found
        with self._explained():
            products = torch.autograd.grad(
                [self._with_graph[name] for name in names],
                [self._parameters[name] for name in names],
                [probe[name] for name in names],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return found | dict(zip(names, products, strict=True))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as cause:
            raise MethodError(
                f"The criterion {self._name!r} ran out of memory: exact second derivatives hold the graph of the "
                "gradient. Use SecondDerivatives(by='differences'), which needs the memory of training, or smaller "
                "batches."
            ) from cause
        except RuntimeError as cause:
            raise self._without(f"{_operator(cause, self._loss)}: {first_line(cause)}") from cause

    def _without(self, what: str) -> MethodError:
        return MethodError(
            f"The criterion {self._name!r} needs the second derivative of the loss, and the model has an operator "
            f"without one{what}. Pass second_derivatives=niwaki.SecondDerivatives(by='differences'), which needs first "
            "derivatives only, or choose 'fisher' or 'taylor2'."
        )


@final
class DifferenceProducts(HessianProducts):
    """Products by one-sided differences of gradients. ``run`` computes the loss at the present weights; random numbers
    that it draws are the same each time. ``loss``: what it returned last."""

    def __init__(self, loss: Tensor, run: Callable[[], Tensor], parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self._run, self._parameters = run, parameters
        self.gradients = self._gradients(loss)

    @torch.no_grad()
    def of(self, probe: Mapping[str, Tensor]) -> dict[str, Tensor]:
        step = self._step(probe)
        before = {name: self._parameters[name].data for name in probe}
        try:
            for name, vector in probe.items():
                self._parameters[name].data = before[name] + step * vector
            with torch.enable_grad():
                after = self._gradients(self._run(), probe)
        finally:
            for name, data in before.items():
                self._parameters[name].data = data
        found: dict[str, Tensor] = {}
        for name in probe:
            there, here = after[name], self.gradients[name]
            if there is None and here is None:
                found[name] = torch.zeros_like(before[name])
                continue
            zero = torch.zeros_like(before[name])
            there, here = (zero if one is None else one for one in (there, here))
            wide = torch.promote_types(there.dtype, torch.float32)
            found[name] = (there.to(wide) - here.to(wide)) / step
        return found

    def _gradients(self, loss: Tensor, among: Mapping[str, Tensor] | None = None) -> dict[str, Tensor | None]:
        names = list(self._parameters if among is None else among)
        values = torch.autograd.grad(loss, [self._parameters[name] for name in names], allow_unused=True)
        return dict(zip(names, values, strict=True))

    def _step(self, probe: Mapping[str, Tensor]) -> float:
        """The length of the shift, in units of the probe."""
        weights, vector = _length([self._parameters[name] for name in probe]), _length(probe.values())
        return _SHIFT * max(weights, 1e-15) / vector if vector > 0 else 1.0


# Of the length of the weights. For random signs the error of first order in it has the mean 0, and a shift should cross
# many kinks of ReLUs, not few: on two small trained networks in float32 the rank correlation of 30 probes with the
# exact trace was 0.87 and 0.63 with 0.001, 0.93 and 0.84 with 0.01, 0.90 and 0.94 with 0.05; in bfloat16 0.92.
_SHIFT = 0.05


def _length(values: Iterable[Tensor]) -> float:
    """The norm of all entries together."""
    wide = [torch.linalg.vector_norm(v, dtype=torch.promote_types(v.dtype, torch.float32)).double() for v in values]
    return float(torch.stack([one.cpu() for one in wide]).norm()) if wide else 0.0


def _operator(cause: BaseException, loss: Tensor) -> str:
    """The operators that may be meant by torch's error: those it names, or functions written in Python."""
    named = re.findall(r"derivative for '?([\w:.]+)'?", str(cause))
    names = named or sorted(found.__name__ for found in _python_functions(loss))
    return f" ({', '.join(names)})" if names else ""


def _python_functions(loss: Tensor) -> set[type]:
    """The `torch.autograd.Function` classes that ``loss`` was computed with."""
    found: set[type] = set()
    seen, waiting = set[object](), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if issubclass(type(node), torch.autograd.function.BackwardCFunction):
            found.add(type(node)._forward_cls)  # type: ignore[attr-defined]
        waiting += [following for following, _ in node.next_functions]
    return found


def _is_once_differentiable(function: type) -> bool:
    backward = getattr(function, "backward", None)
    code, mark = getattr(backward, "__code__", None), torch.autograd.function.once_differentiable(lambda context: None)
    return code is not None and code is mark.__code__
