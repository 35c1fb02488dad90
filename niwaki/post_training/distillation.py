"""Let a small network learn from the dense one: the divergence of their outputs, and of what their layers give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.core.names import module_at, named_parameters
from niwaki.core.scalars import is_number
from niwaki.criteria.losses import telling
from niwaki.errors import MethodError

Forward = Callable[[nn.Module, Any], Any]
_PAIRS = (tuple, list)


@dataclass(frozen=True, slots=True, eq=False)
class Distillation:
    """How far a network is from its teacher on a batch, see `distillation`."""

    teacher: nn.Module = field(repr=False)
    forward: Forward
    temperature: float
    hidden: Mapping[str, float]

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The divergence of ``model`` on ``batch``, a scalar with a gradient; add it to the loss.

        Raises:
            MethodError: ``model`` shares parameters with the teacher, which would learn too; a module of ``hidden`` is
                missing, or gives no tensor of the same shape in both; or the outputs are no logits of one shape.
        """
        own = {id(parameter) for parameter in self.teacher.parameters()}
        shared = next((name for name, parameter in named_parameters(model) if id(parameter) in own), None)
        if shared is not None:
            raise MethodError(
                f"The parameter {shared!r} is the teacher's, too, which would change with it. Distil from a copy that "
                "was made before: teacher = copy.deepcopy(model)."
            )
        with torch.no_grad(), evaluated(self.teacher):
            target, there = self._run(self.teacher, batch)
        given, here = self._run(model, batch)
        if given.shape != target.shape:
            raise MethodError(
                f"The model's logits have the shape {list(given.shape)}, the teacher's {list(target.shape)}. "
                "Say how to run both: forward=lambda model, batch: ..."
            )
        loss = divergence(given, target, self.temperature)
        for name, weight in self.hidden.items():
            mine, other = here.get(name), there.get(name)
            if mine is None or other is None or mine.shape != other.shape:
                told = [None if value is None else list(value.shape) for value in (mine, other)]
                raise MethodError(
                    f"hidden={name!r} gives {_shape(told[0])} in the model and {_shape(told[1])} in the teacher. Name "
                    "modules that give one tensor of the same shape in both, such as layers on a stream that keeps its "
                    "width."
                )
            loss = loss + weight * F.mse_loss(mine.float(), other.float()) / other.float().square().mean().clamp(1e-12)
        return loss

    def _run(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits [..., classes], and what the modules of ``hidden`` give."""
        seen: dict[str, Tensor] = {}

        def noter(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def note(_: nn.Module, args: Any, output: Any) -> None:
                first = output[0] if isinstance(output, tuple) and output else output
                if isinstance(first, Tensor):
                    seen[name] = first

            return note

        with ExitStack() as stack:
            for name in self.hidden:
                try:
                    module = module_at(model, name)
                except AttributeError as cause:
                    raise MethodError(
                        f"There is no module {name!r} in a {type(model).__qualname__}, which hidden= names. "
                        "model.named_modules() lists all."
                    ) from cause
                stack.callback(module.register_forward_hook(noter(name)).remove)
            output = self.forward(model, batch)
        return logits_of(model, output), seen


def distillation(
    teacher: nn.Module,
    forward: Forward | None = None,
    *,
    temperature: float = 1.0,
    hidden: Sequence[str] | Mapping[str, float] = (),
) -> Distillation:
    """A callable ``distil(model, batch)`` that says how far a model is from the ``teacher``: a scalar for the loss.

    It is T^2 KL(softmax(teacher / T) || softmax(model / T)) of the logits, the mean over samples and tokens, T being
    the ``temperature`` (Hinton et al., arXiv:1503.02531); and, for each of the modules named in ``hidden``, its weight
    times E|h - h_teacher|^2 / E|h_teacher|^2, h being what the module gives.

    The teacher runs in eval mode and without gradients, and is afterwards in the mode in which it was. It is part of no
    module, so it is in no optimizer and in no checkpoint.

    Args:
        teacher: the dense network: this object, not a copy.
        forward: how to run a model on a batch; by default ``model(batch)`` for a tensor, ``model(batch[0])`` for a
            tuple or list of inputs and labels, ``model(**batch)`` for a dict. What it returns is the logits
            [..., classes], or has them as its attribute ``logits``.
        temperature: above 0.
        hidden: names of modules, of weight 1 each, or weights by name.

    Raises:
        MethodError: the teacher is no module, or a number is not above 0.

    Example:
        >>> import copy, torch, niwaki
        >>> dense = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, labels = torch.randn(16, 4), torch.randint(0, 3, (16,))
        >>> space = niwaki.search_space(dense, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))
        >>> small, distil = niwaki.cut(dense, plan), niwaki.distillation(dense, temperature=2.0, hidden=["2"])
        >>> loss = torch.nn.functional.cross_entropy(small(x), labels) + 0.5 * distil(small, x)
        >>> loss.requires_grad, float(distil(copy.deepcopy(dense), x).detach())
        (True, 0.0)
    """
    if not isinstance(teacher, nn.Module):
        raise MethodError(f"The teacher is a {type(teacher).__qualname__}, but must be the dense network, a module.")
    weights = dict(hidden) if isinstance(hidden, Mapping) else dict.fromkeys(hidden, 1.0)
    for what, number in [("temperature", temperature), *((f"hidden[{name!r}]", w) for name, w in weights.items())]:
        if not is_number(number) or not 0 < number < float("inf"):
            raise MethodError(f"{what}={number!r} must be a number above 0.")
    return Distillation(teacher, plainly if forward is None else forward, float(temperature), weights)


def logits_of(model: nn.Module, output: Any) -> Tensor:
    """The logits [..., classes] that ``model`` returned.

    Raises:
        MethodError: the output has no logits, or logits of a single class.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.ndim:
        raise MethodError(
            f"The {type(model).__qualname__} returns a {type(output).__qualname__}, which is not and has no tensor of "
            "logits. Say how to get them: forward=lambda model, batch: model(batch[0])[0]."
        )
    if logits.shape[-1] == 1:
        raise MethodError(
            f"The {type(model).__qualname__} returns one number per sample, of shape {list(logits.shape)}, whose "
            "softmax is 1 whatever it is, so that outputs cannot be compared by it. If it is the logit of one of two "
            "classes, say so: forward=lambda model, batch: torch.nn.functional.pad(model(batch[0]), (1, 0)). Of a "
            "regression, compare outputs by a loss of your own."
        )
    return logits


def plainly(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, _PAIRS) and len(batch) > 2:
        raise MethodError(
            f"A batch is a {type(batch).__qualname__} of {len(batch)}, more than inputs and labels. Say how to run a "
            "model on it: forward=lambda model, batch: model(batch[0], batch[1])."
        )
    with telling(
        f"The {type(model).__qualname__} does not run on a batch",
        "A batch is inputs alone, or inputs and labels in this order; for others say forward=lambda model, batch: ...",
    ):
        return model(**batch) if isinstance(batch, Mapping) else model(batch[0] if isinstance(batch, _PAIRS) else batch)


def divergence(given: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(given / T)), the mean over all but the last dimension."""
    here, there = (
        F.log_softmax(logits.float() / temperature, -1).reshape(-1, logits.shape[-1]) for logits in (given, target)
    )
    return temperature**2 * F.kl_div(here, there, reduction="batchmean", log_target=True)


def _shape(shape: list[int] | None) -> str:
    return "no tensor" if shape is None else f"a tensor of shape {shape}"


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
