"""Least squares of a layer's output on its remaining inputs, from sums over positions, in each group of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_TINY = torch.finfo(torch.float64).tiny
_ROUNDINGS = 1e-12  # of squares of numbers in single precision


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Means and covariances over positions: of the outputs z [G, O] of each group of a layer in the dense network, less
    its bias, and of its remaining inputs y [G, S]. ``zz`` [G, O]: variances; ``zy`` [G, O, S]; ``yy`` [G, S, S].
    """

    z: Tensor
    y: Tensor
    zz: Tensor
    zy: Tensor
    yy: Tensor

    @property
    def plain(self) -> Moments:
        """The same about zero instead of about the means."""
        return Moments(
            torch.zeros_like(self.z),
            torch.zeros_like(self.y),
            self.zz + self.z**2,
            self.zy + self.z[:, :, None] * self.y[:, None],
            self.yy + self.y[:, :, None] * self.y[:, None],
        )

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(value.isfinite().all()) for value in (self.z, self.y, self.zz, self.zy, self.yy))

    @property
    def whole(self) -> float:
        """The mean square of z, summed over outputs; above 0."""
        return max(float(self.zz.sum()), _TINY)

    def share(self, lost: float, power: float) -> float:
        """``lost`` as a share of `whole`; 0 and infinity where that is nothing but roundings of outputs of this mean
        square ``power``, and so is ``lost`` or not."""
        if self.whole > _ROUNDINGS * power:
            return lost / self.whole
        return 0.0 if lost <= _ROUNDINGS * power else float("inf")

    def lost(self, weight: Tensor) -> float:
        """The mean square of z - ``weight`` y, summed over outputs."""
        square = self.zz.sum() - 2 * (self.zy * weight).sum() + (weight @ self.yy * weight).sum()
        return max(float(square), 0.0)

    def fitted(self, weight: Tensor, ridge: float) -> Tensor:
        """The weights [G, O, S] that lose least, changes of ``weight`` being penalised by ``ridge`` times the mean
        power of an input of the group.

        Raises:
            ValueError: the inputs are so dependent that the equations have no stable solution.
        """
        power = self.yy.diagonal(dim1=1, dim2=2).mean(1)
        silent = power <= 0  # groups that read nothing, which keep their weights
        eye = torch.eye(self.yy.shape[1]).to(self.yy)
        strength = torch.where(silent, 1.0, ridge * power)[:, None, None] * eye
        root, failed = torch.linalg.cholesky_ex(self.yy + strength)
        if bool(failed.any()):
            raise ValueError(f"its remaining inputs are too correlated for ridge={ridge:g}")
        change = torch.cholesky_solve((self.zy - weight @ self.yy).mT, root).mT
        return weight + torch.where(silent[:, None, None], 0.0, change)


class Regression:
    """Sums over the positions of a layer, of which some are held out for the choice of a ridge.

    Sums are taken about the mean of the first positions, so that inputs far from zero lose no digits. Products are in
    the precision of the inputs, float32 at least; what one call gives is added up in float64.
    """

    def __init__(self) -> None:
        self._about: tuple[Tensor, Tensor] | None = None
        self._parts: list[list[Tensor]] = [[], []]

    @property
    def empty(self) -> bool:
        """Whether there were no positions."""
        return self._about is None

    def add(self, outputs: Tensor, inputs: Tensor, weight: float, held_out: bool) -> None:
        """Add positions: ``outputs`` [N, G, O] and ``inputs`` [N, G, S], each counted ``weight`` times."""
        if self._about is None:
            self._about = outputs.mean(0), inputs.mean(0)
        z, y = outputs - self._about[0], inputs - self._about[1]
        across, square = z.permute(1, 2, 0) @ y.transpose(0, 1), y.permute(1, 2, 0) @ y.transpose(0, 1)
        sums = [value.double() * weight for value in (z.sum(0), y.sum(0), (z * z).sum(0), across, square)]
        sums.append(sums[0].new_tensor(weight * len(z)))
        part = self._parts[held_out]
        part[:] = [a + b for a, b in zip(part, sums, strict=True)] if part else sums

    def moments(self) -> Moments:
        """Over all positions."""
        fit, held_out = self._parts
        return self._moments(
            [a + b for a, b in zip(fit, held_out, strict=True)] if fit and held_out else fit or held_out
        )

    def ridge(self, weight: Tensor, centred: bool) -> float:
        """That of `RIDGES` with which a fit on the other positions loses least on those held out; a middle one where
        there are none."""
        if not all(self._parts):
            return RIDGES[len(RIDGES) // 2]
        fit, held_out = (self._moments(part) if centred else self._moments(part).plain for part in self._parts)
        errors = []
        for ridge in RIDGES:
            try:
                new = fit.fitted(weight, ridge)
            except ValueError:
                errors.append(float("inf"))
                continue
            # Zero where moments are about zero:
            shift = (held_out.z - fit.z) - (new @ (held_out.y - fit.y).unsqueeze(2)).squeeze(2)
            errors.append(held_out.lost(new) + float(shift.square().sum()))
        return RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]

    def _moments(self, sums: Sequence[Tensor]) -> Moments:
        assert self._about is not None
        *parts, count = sums
        z, y, zz, zy, yy = (part / count for part in parts)
        about = [value.double() for value in self._about]
        cross, square = zy - z[:, :, None] * y[:, None], yy - y[:, :, None] * y[:, None]
        return Moments(about[0] + z, about[1] + y, (zz - z * z).clamp(min=0), cross, square)
