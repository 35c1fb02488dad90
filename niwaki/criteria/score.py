"""Scoring all units of a search space by one criterion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from niwaki.core.counts import FloatArray
from niwaki.core.segments import UnitIndex, unit_parameters
from niwaki.core.space import SearchSpace
from niwaki.criteria.among import among
from niwaki.criteria.registry import Criterion, named
from niwaki.criteria.sums import UnitSums, row_sums
from niwaki.errors import MethodError
from niwaki.trace.preserve import preserved

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """``values`` [num_units], float64: how much the network needs each unit, by the criterion of that name."""

    values: FloatArray
    criterion: str


def score(
    space: SearchSpace,
    criterion: str | Callable[[SearchSpace], ArrayLike],
    batches: Iterable[Any] | None = None,
    loss_fn: Loss | None = None,
    *,
    seed: int = 0,
) -> Scores:
    """Score every unit of ``space``.

    ``criterion``: the name of a registered criterion, or a function of the space that returns [num_units] values.
    Criteria defined by gradients also need ``batches`` (anything iterable) and ``loss_fn(model, batch)``, which
    returns a scalar; their values are means over the batches, in eval mode. ``seed`` is for criteria that draw.

    The model is left as it was: parameters, gradients, modes, buffers and attributes; so are the random states of
    Python, numpy and torch.

    Raises:
        UnknownName: there is no criterion of that name.
        MethodError: data are needed and missing, the loss is no finite scalar, or a function returned something else
            than one finite number per unit.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> niwaki.score(space, "magnitude").values.shape
    (10,)
    >>> batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(3)]
    >>> def loss_fn(model, batch):
    ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> niwaki.score(space, "taylor1", batches, loss_fn).criterion
    'taylor1'
    """
    if not isinstance(criterion, str):
        return Scores(_values(space, criterion(space), _name_of(criterion)), _name_of(criterion))
    chosen = named(criterion)
    if not chosen.needs_data:
        return Scores(_values(space, _saliency(space, UnitIndex.of(space), chosen, {}, seed), criterion), criterion)
    if batches is None or loss_fn is None:
        missing = [word for word, value in (("batches", batches), ("loss_fn", loss_fn)) if value is None]
        raise MethodError(
            f"The criterion {criterion!r} is defined by the gradient of the loss, so niwaki.score needs "
            f"{' and '.join(missing)}: some batches of data, and a function loss_fn(model, batch) that returns the "
            "scalar loss."
        )
    return Scores(_values(space, _mean_over(space, chosen, batches, loss_fn, seed), criterion), criterion)


def _mean_over(space: SearchSpace, chosen: Criterion, batches: Iterable[Any], loss_fn: Loss, seed: int) -> Tensor:
    index, parameters = UnitIndex.of(space), unit_parameters(space)
    total, count = torch.zeros_like(index.entries), 0
    with _borrowed(space.model, parameters.values()):
        for batch in batches:
            with torch.enable_grad():
                loss = _loss_of(loss_fn, space.model, batch)
                _check_loss(loss, count)
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            total += _saliency(space, index, chosen, dict(zip(parameters, gradients, strict=True)), seed)
            count += 1
    if count == 0:
        raise MethodError(
            f"batches is empty, so the criterion {chosen.name!r} has no gradient to score with. "
            "Pass at least one batch (a generator can be read only once)."
        )
    return total / count


@torch.no_grad()
def _saliency(
    space: SearchSpace, index: UnitIndex, chosen: Criterion, gradients: dict[str, Tensor | None], seed: int
) -> Tensor:
    """One criterion at the model's weights, the gradient being the direction of descent: [num_units]."""
    parameters = unit_parameters(space)
    rows: dict[str, list[Tensor]] = {}
    for bundle in index.bundles:
        x = bundle.join([parameters[name].detach() for name in bundle.names])
        gradient = None
        if gradients:
            parts = [gradients[name] for name in bundle.names]
            zeros = [torch.zeros_like(parameters[name]) for name in bundle.names]
            gradient = bundle.join([z if g is None else g for g, z in zip(parts, zeros, strict=True)])
        for name, parts_ in row_sums(x, gradient, gradient, bundle.dims, chosen.reads).items():
            rows.setdefault(name, []).extend(parts_)
    number = torch.arange(index.num_units, device=index.entries.device)
    others = among(space, parameters, chosen.reads, index.entries)
    return chosen.saliency(UnitSums(index.num_units, number, index.entries, seed, **index.total(rows), **others))


def _loss_of(loss_fn: Loss, model: nn.Module, batch: Any) -> Tensor:
    if not callable(loss_fn):
        raise MethodError(f"loss_fn={loss_fn!r} is no function. Pass loss_fn(model, batch), which returns the loss.")
    try:
        inspect.signature(loss_fn).bind(model, batch)
    except ValueError:
        pass  # some built-in functions have no signature to look at
    except TypeError as cause:
        raise MethodError(
            f"loss_fn cannot be called as loss_fn(model, batch): {cause}. It is given the model and one batch, and "
            "returns the scalar loss."
        ) from cause
    return loss_fn(model, batch)


def _check_loss(loss: object, count: int) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__qualname__}"
        raise MethodError(
            f"loss_fn must return the scalar loss of a batch, but returned {what}. Reduce it to its mean."
        )
    if not loss.requires_grad:
        raise MethodError(
            "The loss that loss_fn returned does not depend on the model's parameters, so there is no gradient to "
            "score with. Compute it from the model that loss_fn is given, without torch.no_grad() and without .item()."
        )
    if not torch.isfinite(loss):
        raise MethodError(
            f"The loss of batch {count} is {loss.item()}, so its gradient scores nothing. "
            "Look for non-finite data or a diverged model."
        )


def _values(space: SearchSpace, values: Tensor | ArrayLike, name: str) -> FloatArray:
    """``values`` as [num_units] finite float64 numbers, or an error that says what is wrong with them."""
    raw = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    try:
        array = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError) as cause:
        raise MethodError(f"The criterion {name!r} returned something that is no array of numbers: {cause}.") from cause
    if array.shape != (space.num_units,):
        raise MethodError(
            f"The criterion {name!r} must return one number per unit, an array of shape [{space.num_units}], but "
            f"returned the shape {list(array.shape)}."
        )
    if not np.isfinite(array).all():
        unit = int(np.flatnonzero(~np.isfinite(array))[0])
        group = next(group for group in space.groups if group.first <= unit < group.first + group.units)
        raise MethodError(
            f"The criterion {name!r} is {array[unit]} for unit {unit - group.first} of the group {group.name!r}. "
            "Scores must be finite: look for non-finite weights or gradients."
        )
    return array


def _name_of(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", None) or type(function).__qualname__


@contextmanager
def _borrowed(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The model in eval mode with gradients for ``parameters``; afterwards everything is as it was."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    with preserved(model):
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            model.eval()
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
