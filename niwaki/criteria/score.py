"""Score all units of a search space by one criterion, or by a weighted mix of several."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.describe import counted, first_of
from niwaki.core.dying import structure_units
from niwaki.core.html import html_table
from niwaki.core.scalars import is_whole, whole_seed
from niwaki.core.space import ChannelSpace, SearchSpace, check_scored
from niwaki.core.union_streams import UnionStreams
from niwaki.criteria.losses import Loss
from niwaki.criteria.measure import Measurement, ScoreSettings
from niwaki.criteria.measured_terms import terms_of
from niwaki.criteria.mix import One, check_layers, check_one, finite, name_of, weights_of
from niwaki.criteria.normalise import Compare, check_compare, normalise
from niwaki.criteria.products import SecondDerivatives
from niwaki.criteria.registry import Criterion, check_of_channels, named
from niwaki.criteria.routed import not_experts
from niwaki.criteria.terms import EFFECTS, terms_worth
from niwaki.errors import MethodError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scores:
    """The saliency of each unit: ``values`` [num_units], float64, and the name of the ``criterion``.

    ``compare``: the units among which values were normalised, and among which `niwaki.choose` compares them; None if
    they are the criterion's own. ``silent``: the units of which they say nothing, so that `niwaki.choose` keeps them:
    terms without parameters, where no batches have been scored; for ``reap`` all that is not an expert; for criteria
    that compare units with others of their group all structures.

    ``groups``: the range of each group among the values, for printing.
    """

    values: FloatArray
    criterion: str
    compare: Compare | None = None
    silent: tuple[int, ...] = ()
    groups: Mapping[str, slice] = field(default_factory=dict)

    def __str__(self) -> str:
        ranges = self._ranges()
        width = max(map(len, ranges), default=0)
        rows = [f"  {name:<{width}}  {low:.3g}  {mid:.3g}  {high:.3g}" for name, (low, mid, high) in ranges.items()]
        head = f"{self._title}: {counted(len(self.values), 'unit')}; lowest, median and highest"
        return "\n".join([head, *first_of(rows, 20)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(name, *(f"{value:.3g}" for value in values)) for name, values in self._ranges().items()]
        return html_table(self._title, ("group", "lowest", "median", "highest"), rows)

    @property
    def _title(self) -> str:
        return f"Scores by {self.criterion}" + (f", compared by {self.compare}" if self.compare else "")

    def _ranges(self) -> dict[str, tuple[float, float, float]]:
        """The lowest, the median and the highest score of each group."""
        spans = self.groups or {"all units": slice(None)}
        values = np.asarray(self.values, dtype=np.float64)  # a list of one's own prints as well
        found = {name: values[span] for name, span in spans.items()}
        return {
            name: (float(own.min()), float(np.median(own)), float(own.max())) for name, own in found.items() if len(own)
        }


def score(
    space: SearchSpace | UnionStreams,
    criterion: One | Mapping[One, float],
    batches: Iterable[Any] | None = None,
    loss_fn: Loss | None = None,
    *,
    compare: Compare | None = None,
    seed: int = 0,
    probes: int = 30,
    second_derivatives: SecondDerivatives | None = None,
    fresh_norms: bool = False,
    readers: bool = False,
    among: Compare | None = None,
) -> Scores:
    """Score every unit of ``space``.

    Args:
        space: the search space of the units. With ``streams="union"``, of the channels of each branch, too.
        criterion: the name of a registered criterion; or a function of the space that returns [num_units] values; or a
            mix of these, ``{"magnitude": 0.5, "taylor1": 0.5}``, the weighted sum of all, each normalised.
        batches: an iterable of batches, for criteria that need data. Values are means over the batches, in eval mode.
        loss_fn: ``loss_fn(model, batch)`` returns the scalar loss of a batch. Or a loss of torch's own, a module or
            function of outputs and labels such as ``torch.nn.CrossEntropyLoss()``, for batches ``(inputs, labels)``.
        compare: among which units values are divided by their mean: those of each ``group``; of each ``layer`` (every
            module scores its part of a unit by itself, and the unit has the mean of its layers); of all ``isomorphic``
            groups (the same layers in the same arrangement); or of the whole ``space``. None does not divide them; a
            mix then uses ``group``. Negative values of a function count from the lowest of all. The scores carry it,
            and `niwaki.choose` compares them in the same way by default.
        seed: the random seed, for criteria with random numbers.
        probes: Hessian-vector products per batch, for criteria that need them (``hessian``,
            ``relative_hessian_trace``): the most, if ``second_derivatives`` stops earlier.
        second_derivatives: how these products are computed, and when they suffice: `niwaki.SecondDerivatives`.
        fresh_norms: score with running statistics of BatchNorm that are estimated anew from ``batches``, which are read
            twice: for networks that were never trained, or whose statistics are of other data.
        readers: sum over the weights that read a unit, too, and not only over those that make it; a weight by which a
            unit makes itself counts for both. A criterion of activations, of distances between units, or a function is
            the same with and without.
        among: the earlier name of ``compare``; it warns.

    A structure, of a space made with ``erase=True``, is scored by all weights that die with it, and comparably between
    structures of any size. Criteria of the gradient tell its effect on the loss. All others say what they think of the
    mean weight, times the number of weights, each as often as it is used (a kernel at every position of a picture).
    Criteria of activations take the mean over the units inside of it instead of the mean weight. One without parameters
    (a shortcut, a pooling) has a gate, a factor of value 1: criteria of the gradient score it as a weight, all others
    as a structure of weights of the same effect on the loss (of first and second order, over the mean of all). That
    takes ``batches`` and ``loss_fn``, whatever the criterion; without them nothing is said of it, and `niwaki.choose`
    keeps it.

    The model is restored: parameters, gradients, modes, buffers and attributes; so are the random states of Python,
    numpy and torch.

    Raises:
        UnknownName: there is no criterion of that name.
        MethodError: data are needed and missing, the loss is not a finite scalar, a weight makes no sense, a criterion
            is not defined for the space, or a function returned something else than one finite number per unit.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> niwaki.score(space, "magnitude").values.shape
    (10,)
    >>> batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(3)]
    >>> def loss_fn(model, batch):
    ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> scores = niwaki.score(space, "taylor1", batches, loss_fn)
    >>> same = niwaki.score(space, "taylor1", batches, torch.nn.CrossEntropyLoss())
    >>> bool((scores.values == same.values).all())
    True
    >>> niwaki.score(space, {"activation": 1.0, "magnitude": 0.5}, batches, loss_fn).criterion
    '1 activation + 0.5 magnitude'
    """
    space = space.scored_space if isinstance(space, UnionStreams) else space
    check_scored(space)
    if among is not None:
        warnings.warn("niwaki.score(among=...) is called compare=... now.", DeprecationWarning, stacklevel=2)
        if compare is not None:
            raise MethodError(f"compare={compare!r} and among={among!r} are one argument: pass compare alone.")
        compare = among
    if compare is not None:
        check_compare(compare)
    if not isinstance(readers, bool):
        raise MethodError(f"readers={readers!r} must be True or False: whether weights that read a unit count, too.")
    if not is_whole(probes) or probes < 1:
        raise MethodError(f"probes={probes!r} must be a whole number, 1 or more.")
    seed = whole_seed(seed)
    if isinstance(criterion, Mapping):
        mix, compare = weights_of(criterion, "The mix of criteria"), compare or "group"
    else:
        check_one(criterion)
        mix = {criterion: 1.0}
    registered = [named(one) for one in mix if isinstance(one, str)]
    if isinstance(space, ChannelSpace):
        check_of_channels(registered)
    bent = next((one.name for one in registered if one.needs_curvature), None)
    if readers and bent is not None:
        raise MethodError(
            f"The criterion {bent!r} is defined by the weights that make a unit: leave out readers=True, or take one "
            "such as 'taylor1'."
        )
    if compare == "layer":
        check_layers(registered, [one for one in mix if not isinstance(one, str)])
    found: dict[str, Any] = {}
    terms, everything = terms_of(space), np.ones(space.num_units, dtype=bool)
    silent = terms & bool(registered)
    others = not_experts(space) if any("routed" in one.reads for one in registered) else np.zeros_like(terms)
    if any(one.needs_peers for one in registered):
        others[list(structure_units(space).values())] = True
    if registered:
        settings = ScoreSettings(
            seed, int(probes), second_derivatives or SecondDerivatives(), bool(fresh_norms), readers
        )
        if silent.any() and all(one.knows_terms for one in registered):
            silent = np.zeros_like(terms)
        elif silent.any() and batches is not None and loss_fn is not None:
            names = [one.name for one in registered]
            registered += [named(name) for name in EFFECTS if name not in names]
            silent = np.zeros_like(terms)
        measured: Any = _measure(space, registered, batches, loss_fn, settings, compare == "layer")
        if terms.any() and not silent.any() and not all(one.knows_terms for one in registered):
            rows = measured.double().cpu().numpy()
            measured = terms_worth(space, rows, registered, terms, everything)
        found = dict(zip([one.name for one in registered], measured, strict=True))
    total, silent = np.zeros(space.num_units), silent | others
    for one, weight in mix.items():
        name = name_of(one)
        values = finite(space, found[one] if isinstance(one, str) else one(space), name)
        if compare is not None and compare != "layer":
            values = normalise(space, values, ~silent, compare)
        total += weight * values
    told = tuple(np.flatnonzero(silent).tolist())
    groups = {group.name: group.numbers for group in space.groups}
    if not isinstance(criterion, Mapping):
        return Scores(total, name_of(criterion), compare, told, groups)
    name = " + ".join(f"{weight:g} {name_of(one)}" for one, weight in mix.items())
    return Scores(total, name, compare, told, groups)


def _measure(
    space: SearchSpace,
    criteria: Sequence[Criterion],
    batches: Iterable[Any] | None,
    loss_fn: Loss | None,
    settings: ScoreSettings,
    by_layer: bool,
) -> Tensor:
    if not space.num_units:
        return torch.zeros(len(criteria), 0)
    everything = np.ones(space.num_units, dtype=bool)
    measurement = Measurement(space, criteria, settings, everything if by_layer else None)
    needy = next((criterion for criterion in criteria if criterion.needs_data), None)
    if needy is None:
        return measurement.at_weights()
    if batches is None or loss_fn is None:
        missing = [word for word, value in (("batches", batches), ("loss_fn", loss_fn)) if value is None]
        what = "the activations" if needy.needs_activations else "the gradient of the loss"
        what = "runs of the network without each structure" if needy.needs_absence else what
        raise MethodError(
            f"The criterion {needy.name!r} is defined by {what}, so niwaki.score needs "
            f"{' and '.join(missing)}: some batches of data, and a function loss_fn(model, batch) that returns the "
            "scalar loss (or a loss of torch's own, for batches of inputs and labels)."
        )
    return measurement.over(batches, loss_fn)
