"""What rules know of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from niwaki.rules.axis import Axis


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """A factor of every entry: after a cut, (positions / surviving positions of ``axis``) ** power times its value in
    the zeroed model. ``why``: the number of the reason to give where no weight can take it up."""

    axis: Axis
    power: float
    why: int


@dataclass(frozen=True, slots=True)
class Source:
    """The parameter that a tensor is made of: every entry is one of parameter number ``value``, plus ``shift``. To
    multiply the tensor, that parameter is changed."""

    value: int
    shift: float


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """What the rules know of a tensor.

    ``axes``: one per dimension. ``zero[d]``: in the zeroed model, entries at removed positions of dimension d are zero.
    ``weight``: made of parameters alone. ``uniform[d]``: all entries along dimension d are equal (empty if not known).
    ``index_of``: the axis along which every entry is an index, if they are indices. ``nonnegative``: no entry is
    negative, whatever the weights and inputs are. ``scale``, ``source``, ``index_of`` and ``nonnegative`` are passed
    from operator to operator outside of the rules, by what `homogeneous` and `nonnegative` declare.
    """

    axes: tuple[Axis, ...]
    zero: tuple[bool, ...]
    weight: bool
    dtype: torch.dtype
    scale: tuple[Scale, ...] = ()
    source: Source | None = None
    uniform: tuple[bool, ...] = ()
    index_of: Axis | None = None
    nonnegative: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The traced shape."""
        return tuple(axis.size for axis in self.axes)

    def __str__(self) -> str:
        zero = [
            str(dim)
            for dim, (axis, is_zero) in enumerate(zip(self.axes, self.zero, strict=True))
            if axis.free and is_zero
        ]
        said = [
            f"zero along dim {', '.join(zero)}" if zero else "",
            "made of parameters" if self.weight else "",
            "nonnegative" if self.nonnegative else "",
            "" if self.index_of is None else f"indices on {self.index_of}",
            *(f"times (size ratio of {scale.axis}) ** {scale.power:g}" for scale in self.scale),
        ]
        return "; ".join([f"[{', '.join(map(str, self.axes))}]", *filter(None, said)])
