"""Measure the values of criteria at the model's weights, as means over batches of data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.absence import Absence
from niwaki.criteria.curvature import curvature
from niwaki.criteria.losses import Loss, check_loss, loss_of
from niwaki.criteria.measured_terms import MeasuredTerms
from niwaki.criteria.norm_statistics import refresh_norms
from niwaki.criteria.observe import ActivationObserver
from niwaki.criteria.products import DifferenceProducts, ExactProducts, HessianProducts, SecondDerivatives
from niwaki.criteria.registry import Criterion
from niwaki.criteria.trace import TraceEstimate
from niwaki.errors import MethodError
from niwaki.per_unit.index import UnitIndex, scored_parameters
from niwaki.per_unit.layers import Layers
from niwaki.per_unit.peers import among
from niwaki.per_unit.sums import ABSENCE, UnitSums, row_sums
from niwaki.per_unit.whole import WholeUnits, saliencies
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved
from niwaki.trace.structures import tensors_in


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """The arguments of `niwaki.score` that say how criteria are measured."""

    seed: int = 0
    probes: int = 30
    second: SecondDerivatives = SecondDerivatives()
    fresh_norms: bool = False
    readers: bool = False


class Measurement:
    """Several criteria measured at once: the model runs once per batch. ``by_layer`` [num_units]: each
    layer scores its part of a unit by itself, over its mean among these units; see `Layers` and `check_layers`."""

    def __init__(
        self,
        space: SearchSpace,
        criteria: Sequence[Criterion],
        settings: ScoreSettings,
        by_layer: BoolArray | None = None,
    ) -> None:
        self._space, self._criteria, self._settings = space, criteria, settings
        self._parameters = scored_parameters(space, settings.readers)
        self._index = UnitIndex.of(space, self._parameters, settings.readers)
        self._whole = WholeUnits.of(space, self._parameters, self._index.entries, settings.readers)
        self._layers = None if by_layer is None else Layers.of(self._index, self._parameters)
        self._counted = by_layer
        self._reads = {name for criterion in criteria for name in criterion.reads}
        self._terms = MeasuredTerms(space, criteria, settings.seed)

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
        with borrowed(self._space.model, self._parameters.values()), ExitStack() as modes:
            if self._settings.fresh_norms:
                batches = list(batches)
                refresh_norms(self._space.model, batches, loss_fn)
            trace = self._trace()
            observer = self._observer()
            absence = self._absence()
            if bent and self._settings.second.by == "backward":
                modes.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others have no second derivative
            for batch in batches:
                run = _repeatable(lambda batch=batch: loss_of(loss_fn, self._space.model, batch))  # type: ignore[misc]
                with torch.enable_grad(), _watched_by(observer), self._terms.attached():
                    loss = run()
                more = observer.fields() if observer else {}
                gradients: dict[str, Tensor | None] = {}
                if any(c.needs_gradients or c.needs_direction or c.needs_curvature for c in self._criteria):
                    gradients, curved = self._derivatives(loss, run, count, trace, samples_in(batch))
                    more |= curved
                if absence is not None:  # which changes weights, so that no gradient would follow any more
                    more |= absence.fields(run, count)
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
        if trace is not None:
            mean["relative_trace"] = trace.values()
        slope = {name: None if value is None else value / count for name, value in slopes.items()}
        found = {c.name: total / count for c, total in zip(each, totals, strict=True)}
        found |= {c.name: value for c, value in zip(bent, self._values(bent, slope, mean), strict=True)}
        joined = self._joined([found[criterion.name] for criterion in self._criteria])
        return self._terms.beside(joined, self._layers is not None)

    def _observer(self) -> ActivationObserver | None:
        if not any(criterion.needs_activations for criterion in self._criteria):
            return None
        return ActivationObserver(
            self._space, self._index.entries, energy="energy" in self._reads, share="share" in self._reads
        )

    def _absence(self) -> Absence | None:
        wanted = self._reads & ABSENCE
        return Absence(self._space, wanted, self._settings.seed, self._index.entries) if wanted else None

    def _trace(self) -> TraceEstimate | None:
        if "relative_trace" not in self._reads:
            return None
        return TraceEstimate(
            self._index, self._parameters, self._settings.seed, self._settings.probes, self._settings.second
        )

    def _derivatives(
        self, loss: Tensor, run: Callable[[], Tensor], count: int, trace: TraceEstimate | None, size: int
    ) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
        """The gradients of the parameters that units are made of, and ``curved`` if some criterion reads it; ``trace``
        gets its probes."""
        check_loss(loss, count)
        if len(self._terms):
            (slope,) = torch.autograd.grad(loss, self._terms.values, retain_graph=True, allow_unused=True)
            self._terms.add(slope)
        bent = next((criterion.name for criterion in self._criteria if criterion.needs_curvature), None)
        if bent is None:
            values = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
            return dict(zip(self._parameters, values, strict=True)), {}
        products: HessianProducts
        if self._settings.second.by == "backward":
            products = ExactProducts(loss, self._parameters, bent)
        else:
            products = DifferenceProducts(loss, run, self._parameters)
        if trace is not None:
            trace.add(products, size, count)
        if "curved" not in self._reads:
            return dict(products.gradients), {}
        generator = torch.Generator().manual_seed(self._settings.seed + count)
        signs = 2 * torch.randint(0, 2, (self._settings.probes, self._index.num_units), generator=generator) - 1
        found = curvature(self._space, self._index, self._parameters, products, signs.to(self._index.entries))
        return dict(products.gradients), {"curved": found}

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
        sums = UnitSums(self._index.num_units, unit, index.entries, self._settings.seed, **index.total(rows), **others)
        whole = self._whole if self._layers is None else None
        return list(saliencies(criteria, sums, whole))

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        found = torch.stack(list(values))
        if self._layers is None or self._counted is None:
            return found
        return self._layers.joined(found, torch.from_numpy(self._counted).to(found.device))


def samples_in(batch: Any) -> int:
    """How many samples a batch has: the first size of its first tensor that has sizes; 1 without one."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 1)


def _repeatable(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """``run``, which draws the same random numbers whenever it is called."""
    states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def again() -> Tensor:
        torch.set_rng_state(states[0])
        if states[1]:
            torch.cuda.set_rng_state_all(states[1])
        return run()

    return again


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
def borrowed(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
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
