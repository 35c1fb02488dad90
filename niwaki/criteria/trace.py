"""The criterion ``relative_hessian_trace``: how much the loss bends along the weights of a unit (HAP)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from niwaki.criteria.products import HessianProducts, ProbeProgress, SecondDerivatives
from niwaki.criteria.registry import criterion
from niwaki.errors import MethodError
from niwaki.per_unit.index import UnitIndex, as_real
from niwaki.per_unit.sums import UnitSums, row_sums

_FEWEST = 10  # probes of a batch before a stable ranking may end it
_UNSTABLE = 0.7  # of the estimated rank correlation


@criterion("relative_hessian_trace", reads=("relative_trace",))
def relative_hessian_trace(unit: UnitSums) -> Tensor:
    """Sum over the unit's weights w_s of Trace(H_ss) / (2 p_s) ||w_s||^2, p_s their number (HAP, arXiv 2101.08940).

    The loss grows by that on average if w_s is moved by its own length in a random direction. Matrices and kernels
    count, each layer's part by itself; biases and the scales of norms do not. Traces are estimated by Hutchinson's
    method, over all batches, weighted by their sizes; negative ones count as 0.
    """
    return unit.relative_trace


def is_weight(value: Tensor, dim: int) -> bool:
    """Whether a tensor is a matrix or a kernel where ``dim`` produces units, and not one number for each of them.

    >>> is_weight(torch.zeros(8, 3, 1, 1), 0), is_weight(torch.zeros(8, 1), 0), is_weight(torch.zeros(8, 1, 1), 0)
    (True, True, False)
    """
    return value.dim() > 1 and (value.numel() > value.shape[dim] or (value.dim() == 2 and dim == 0))


@final
class TraceEstimate:
    """The traces of all weights of all units: a mean over probes and batches.

    A piece is what a unit owns of one dimension of one tensor. Units without any matrix or kernel are made of what
    parameters they have.
    """

    def __init__(
        self,
        index: UnitIndex,
        parameters: Mapping[str, Tensor],
        seed: int,
        probes: int,
        settings: SecondDerivatives,
    ) -> None:
        self._index, self._parameters = index, parameters
        self._seed, self._probes, self._settings = seed, probes, settings
        dimension, weight, sizes = list[int](), list[bool](), list[float]()  # of rows; of dimensions
        for name, dim in _dimensions(index):
            value, rows = as_real(parameters[name]), parameters[name].shape[dim]
            dimension += [len(sizes)] * rows
            weight += [is_weight(parameters[name], dim)] * rows
            sizes.append(value.numel() / rows)
        home = index.entries.device
        matrices = torch.tensor(weight, dtype=torch.bool, device=home)[index.row]
        with_matrix = torch.zeros(index.num_units, dtype=torch.bool, device=home)
        with_matrix[index.unit[matrices]] = True
        counted = matrices | ~with_matrix[index.unit]
        self._row, unit = index.row[counted], index.unit[counted]
        dims = torch.tensor(dimension, dtype=torch.int64, device=home)[self._row]
        pieces, self._piece = torch.unique(dims * index.num_units + unit, return_inverse=True)
        self._unit = pieces % max(index.num_units, 1)
        self._entries = index.entries.new_zeros(len(pieces))
        self._entries.index_add_(0, self._piece, torch.tensor(sizes, device=home).to(index.entries)[dims])
        touched = set(dims.tolist())
        self._probed = sorted({name for number, (name, _) in enumerate(_dimensions(index)) if number in touched})
        self._done = index.entries.new_zeros(2, len(pieces))  # by odd and by even probes: sums over whole batches
        self._size, self._taken = 0.0, 0
        self._halves = torch.zeros_like(self._done)
        self._squares = self._of_rows("square", lambda name: self._parameters[name].detach(), None)

    def add(self, products: HessianProducts, size: float, batch: int) -> None:
        """Take the probes of one batch of ``size`` samples."""
        sums, taken = torch.zeros_like(self._done), [0, 0]
        for probe in range(self._probes):
            vectors = self._vectors(batch, probe)
            found = self._of_rows("product", vectors.__getitem__, products.of(vectors))
            if not bool(torch.isfinite(found).all()):
                raise MethodError(
                    f"Products with the Hessian of batch {batch} are not finite"
                    f"{self._in_half()}, so the curvature cannot score units. Look for non-finite data, or score the "
                    "model in float32 or bfloat16."
                )
            sums[probe % 2] += found
            taken[probe % 2] += 1
            means = [(self._done[h] + size * sums[h] / max(taken[h], 1)) / (self._size + size) for h in (0, 1)]
            self._halves = torch.stack(means)
            if self._told(batch, probe + 1):
                break
        both = sums.sum(0) / sum(taken)
        self._done = self._done + size * torch.stack([s / n if n else both for s, n in zip(sums, taken, strict=True)])
        self._size += size
        self._taken += sum(taken)
        self._halves = self._done / self._size

    def values(self) -> Tensor:
        """The criterion, [num_units]. A warning says so if chance has more to do with its ranking than the loss."""
        stability = rank_stability(*(self._relative(half) for half in self._halves))
        if self._taken >= _FEWEST and stability < _UNSTABLE:
            kinds = {value.dtype for value in map(self._parameters.__getitem__, self._probed)}
            short = sorted(str(kind).removeprefix("torch.") for kind in kinds if torch.finfo(kind).bits < 32)
            rounding = f" Differences of gradients need more than parameters in {short[0]} hold." if short else ""
            warnings.warn(
                f"The ranking by relative_hessian_trace is not stable: after {self._taken} probes its estimated rank "
                f"correlation with the exact one is {stability:.2f}. Take more probes or more data, or "
                f"SecondDerivatives(by='backward').{rounding}",
                stacklevel=5,
            )
        return self._relative(self._halves.mean(0))

    def _relative(self, trace: Tensor) -> Tensor:
        each = trace.clamp(min=0) / (2 * self._entries.clamp(min=1)) * self._squares
        return torch.zeros_like(self._index.entries).index_add_(0, self._unit, each)

    def _told(self, batch: int, probe: int) -> bool:
        """Whether the ranking is stable enough to stop here; tells the listener."""
        stable, listener = self._settings.stable, self._settings.progress
        if stable is None and listener is None:
            return False
        stability = 0.0 if probe < 2 else rank_stability(*(self._relative(half) for half in self._halves))
        if listener is not None:
            listener(ProbeProgress(batch, probe, self._probes, stability))
        return stable is not None and probe >= _FEWEST and stability >= stable

    def _vectors(self, batch: int, probe: int) -> dict[str, Tensor]:
        """Signs for all entries of all weights."""
        found: dict[str, Tensor] = {}
        for number, name in enumerate(self._probed):
            value = self._parameters[name]
            signs = random_signs(as_real(value.detach()), _joint_seed(self._seed, batch, probe, number))
            found[name] = torch.view_as_complex(signs) if value.is_complex() else signs
        return found

    @torch.no_grad()
    def _of_rows(self, what: str, x: Callable[[str], Tensor], h: Mapping[str, Tensor] | None) -> Tensor:
        """Sums over the rows of each piece, [pieces]: of x^2 or of x h."""
        rows: list[Tensor] = []
        probed = set(self._probed)
        for bundle in self._index.bundles:
            values, others = [], []
            for name in bundle.names:
                value = self._parameters[name].detach()
                values.append(x(name) if name in probed else torch.zeros_like(value))
                others.append(torch.zeros_like(value) if h is None or name not in probed else h[name])
            kind = torch.promote_types(values[0].dtype, others[0].dtype)
            joined = (bundle.join(values).to(kind), bundle.join(others).to(kind))
            rows += row_sums(*joined, None, bundle.dims, {what})[what]
        found = self._index.entries.new_zeros(len(self._entries))
        if rows:
            table = torch.cat([part.to(found) for part in rows])
            found.index_add_(0, self._piece, table[self._row])
        return found

    def _in_half(self) -> str:
        half = [name for name in self._probed if self._parameters[name].dtype is torch.float16]
        return f": the model is in float16 ({half[0]!r}), whose largest number is 65504" if half else ""


def random_signs(like: Tensor, seed: int) -> Tensor:
    """Independent entries of -1 and 1, of the shape, type and device of ``like``.

    Each is a bit of a byte of a random number, eight to a number: one number for every sign, for the 23 million weights
    of a ResNet-50, takes a third of the time of a forward and backward pass of 32 images of 64 x 64.

    >>> random_signs(torch.zeros(2, 2), 0).abs()
    tensor([[1., 1.],
            [1., 1.]])
    """
    device = like.device if like.device.type in ("cpu", "cuda") else "cpu"  # others may fill fewer bits of a number
    generator = torch.Generator(device).manual_seed(seed)
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=device).random_(generator=generator)
    signs = words.view(torch.int8)[: like.numel()].bitwise_and_(2).sub_(1)
    return signs.to(like.device, like.dtype).view(like.shape)


def rank_stability(first: Tensor, second: Tensor) -> float:
    """The estimated rank correlation with the exact values of the mean of two independent estimates, of equally many
    probes each.

    >>> rank_stability(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.5, 9.0]))
    1.0
    """
    if len(first) < 2:
        return 1.0
    pair = first.double().cpu().numpy(), second.double().cpu().numpy()
    if any(np.ptp(values) == 0 for values in pair):
        return 1.0 if np.array_equal(*pair) else 0.0
    r = float(spearmanr(*pair).statistic)
    return (2 * r / (1 + r)) ** 0.5 if r > 0 else 0.0


def _joint_seed(seed: int, *numbers: int) -> int:
    """A seed that depends on all of these."""
    return int(np.random.SeedSequence([seed % 2**64, *numbers]).generate_state(1)[0])


def _dimensions(index: UnitIndex) -> list[tuple[str, int]]:
    """The parameter and dimension that each run of rows of ``index`` belongs to, in their order."""
    return [(name, dim) for bundle in index.bundles for name in bundle.names for dim in bundle.dims]
