"""Draw positions of one call: what a linear map gave there in the dense network, and what it reads in the cut one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from niwaki.repair.linear_maps import LinearMap

_ENTRIES = 2**20  # of the inputs that are gathered at once
_HELD_OUT = 4  # one of so many positions is held out


def rows(
    dense: LinearMap, small: LinearMap, groups: list[int], outcome: Tensor, read: Tensor, most: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, float, bool]]:
    """At most ``most`` positions of one call, drawn at random if there are more.

    Yields pieces ``(outputs [N, G, O], inputs [N, G, S], weight, held_out)``: the sums of ``dense`` in those of its
    ``groups`` that stay, from the ``outcome`` that `LinearMap.given` found; what ``small``, its counterpart in the cut
    network, makes sums of there; and how many positions each stands for. The last quarter of the positions, and so in
    most networks of the samples, is held out.

    Raises:
        ValueError: the two did not read the same positions.
    """
    z = dense.places(outcome)
    views = small.windows(read, z.shape[1:-1] if small.transposed else None)
    places = views.shape[: z.ndim - 1]
    if z.shape[:-1] != places:
        raise ValueError("it does not read the same positions in the cut network")
    z, count = z.reshape(-1, z.shape[-1]), places.numel()
    picked = torch.arange(count)
    if count > most:
        picked = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
    exact = torch.promote_types(torch.promote_types(z.dtype, views.dtype), torch.float32)
    border = len(picked) - len(picked) // _HELD_OUT
    length = max(1, _ENTRIES // max(1, views.shape[len(places) :].numel()))
    for held_out, part in enumerate((picked[:border], picked[border:])):
        for piece in torch.split(part.to(z.device), length) if len(part) else ():
            inputs = views[torch.unravel_index(piece, places)].reshape(len(piece), len(groups), -1).to(exact)
            outputs = dense.outputs(z[piece].to(exact))
            yield outputs[:, groups], inputs, count / len(picked), bool(held_out)
