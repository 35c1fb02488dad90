"""Measure the values of criteria at the model's weights, as means over batches of data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.absence import Absence
from niwaki.criteria.curvature import curvature
from niwaki.criteria.losses import Loss, check_loss, loss_of
from niwaki.criteria.observe import ActivationObserver
from niwaki.criteria.registry import Criterion
from niwaki.errors import MethodError
from niwaki.per_unit.index import UnitIndex, scored_parameters
from niwaki.per_unit.layers import Layers
from niwaki.per_unit.peers import among
from niwaki.per_unit.sums import ABSENCE, UnitSums, row_sums
from niwaki.per_unit.whole import saliencies
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved


class Measurement:
    """Several criteria measured at once: the model runs once per batch. ``by_layer`` [num_units]: each
    layer scores its part of a unit by itself, over its mean among these units; see `Layers` and `check_layers`."""

    def __init__(
        self,
        space: SearchSpace,
        criteria: Sequence[Criterion],
        seed: int,
        probes: int,
        by_layer: BoolArray | None = None,
    ) -> None:
        self._space, self._criteria, self._seed, self._probes = space, criteria, seed, probes
        self._parameters = scored_parameters(space)
        self._index = UnitIndex.of(space, self._parameters)
        self._layers = None if by_layer is None else Layers.of(self._index, self._parameters)
        self._counted = by_layer
        self._reads = {name for criterion in criteria for name in criterion.reads}

    def at_weights(self) -> Tensor:
        """The values of the criteria, [criteria, num_units]; they must not need data."""
        return self._joined(self._values(self._criteria, {}, {}))

    def over(self, batches: Iterable[Any], loss_fn: Loss) -> Tensor:
        """The means of the criteria over ``batches``, [criteria, num_units]. Criteria of the curvature get that of the
        mean loss, and its gradient: values clamped batch by batch would not average out."""
        each = [criterion for criterion in self._criteria if not criterion.needs_curvature]
        bent = [criterion for criterion in self._criteria if criterion.needs_curvature]
        totals: list[Tensor] = []
        slopes: dict[str, Tensor | None] = {}
        fields: dict[str, Tensor | None] = {}
        count = 0
        with _borrowed(self._space.model, self._parameters.values()), ExitStack() as modes:
            observer = self._observer()
            absence = self._absence()
            if bent:
                modes.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others have no second derivative
            for batch in batches:
                with torch.enable_grad(), _watched_by(observer):
                    loss = loss_of(loss_fn, self._space.model, batch)
                more = observer.fields() if observer else {}
                if absence is not None:
                    more |= absence.fields(lambda batch=batch: loss_of(loss_fn, self._space.model, batch), count)  # type: ignore[misc]
                gradients: dict[str, Tensor | None] = {}
                if any(c.needs_gradients or c.needs_direction or c.needs_curvature for c in self._criteria):
                    gradients, curved = self._derivatives(loss, count)
                    more |= curved
                values = self._values(each, gradients, more)
                totals = [a + b for a, b in zip(totals, values, strict=True)] if count else values
                if bent:
                    slopes, fields = _sum(slopes, gradients), _sum(fields, more)
                count += 1
        if not count:
            raise MethodError(
                f"batches is empty, so the criterion {self._criteria[0].name!r} has nothing to score with. "
                "Pass at least one batch (a generator can be read only once)."
            )
        mean = {name: value / count for name, value in fields.items() if value is not None}
        slope = {name: None if value is None else value / count for name, value in slopes.items()}
        found = {c.name: total / count for c, total in zip(each, totals, strict=True)}
        found |= {c.name: value for c, value in zip(bent, self._values(bent, slope, mean), strict=True)}
        return self._joined([found[criterion.name] for criterion in self._criteria])

    def _observer(self) -> ActivationObserver | None:
        if not any(criterion.needs_activations for criterion in self._criteria):
            return None
        return ActivationObserver(self._space, self._index.entries, energy="energy" in self._reads)

    def _absence(self) -> Absence | None:
        wanted = self._reads & ABSENCE
        return Absence(self._space, wanted, self._seed, self._index.entries) if wanted else None

    def _derivatives(self, loss: Tensor, count: int) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
        """The gradients of the parameters that units are made of, and ``curved`` if some criterion reads it."""
        check_loss(loss, count)
        curved = any(criterion.needs_curvature for criterion in self._criteria)
        values = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True, create_graph=curved)
        gradients: dict[str, Tensor | None] = dict(zip(self._parameters, values, strict=True))
        if not curved:
            return gradients, {}
        reached = {name: value for name, value in zip(self._parameters, values, strict=True) if value is not None}
        generator = torch.Generator().manual_seed(self._seed + count)
        signs = 2 * torch.randint(0, 2, (self._probes, self._index.num_units), generator=generator) - 1
        found = curvature(self._space, self._index, self._parameters, reached, signs.to(self._index.entries))
        return {name: None if value is None else value.detach() for name, value in gradients.items()}, {"curved": found}

    @torch.no_grad()
    def _values(
        self, criteria: Sequence[Criterion], gradients: Mapping[str, Tensor | None], more: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Each of ``criteria``, the gradient being the direction of descent: [num_units], or [parts]."""
        if not criteria:
            return []
        rows: dict[str, list[Tensor]] = {}
        for bundle in self._index.bundles:
            x = bundle.join([self._parameters[name].detach() for name in bundle.names])
            gradient = None
            if gradients:
                parts = [gradients[name] for name in bundle.names]
                zeros = [torch.zeros_like(self._parameters[name]) for name in bundle.names]
                gradient = bundle.join([z if g is None else g for g, z in zip(parts, zeros, strict=True)])
            for name, found in row_sums(x, gradient, gradient, bundle.dims, self._reads).items():
                rows.setdefault(name, []).extend(found)
        index, unit = self._index, torch.arange(self._index.num_units, device=self._index.entries.device)
        if self._layers is None:
            others = {**among(self._space, self._parameters, self._reads, index.entries), **more}
        else:
            index, unit, others = self._layers.index, self._layers.unit, {"group": self._layers.layer}
        sums = UnitSums(self._index.num_units, unit, index.entries, self._seed, **index.total(rows), **others)
        whole = self._index.whole if self._layers is None else None
        return list(saliencies(criteria, sums, whole))

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        found = torch.stack(list(values))
        if self._layers is None or self._counted is None:
            return found
        return self._layers.joined(found, torch.from_numpy(self._counted).to(found.device))


def _sum(total: Mapping[str, Tensor | None], more: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """``total`` with ``more`` added, name by name; None counts as zero."""
    found: dict[str, Tensor | None] = {}
    for name, value in more.items():
        before = total.get(name)
        found[name] = value if before is None else before if value is None else before + value
    return found


@contextmanager
def _watched_by(observer: ActivationObserver | None) -> Iterator[None]:
    if observer is None:
        yield
        return
    with eagerly(), observer:
        yield


@contextmanager
def _borrowed(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put the model into eval mode with gradients for ``parameters`` inside the block; restore everything
    afterwards."""
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
