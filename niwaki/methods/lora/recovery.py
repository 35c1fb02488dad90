"""What to train on once units have left: more of the data whose loss has suffered (LoRAShear, arXiv 2310.18356)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from niwaki.errors import MethodError
from niwaki.methods.checks import check_number


def recovery_shares(before: Mapping[str, float], now: Mapping[str, float], *, floor: float = 0.1) -> dict[str, float]:
    """The share of the training data that each domain should have, so that what was lost most is learnt most.

    LoRAShear recovers the knowledge of a pruned network in rounds: it measures by how much each domain has got worse,
    mixes the data accordingly, trains on that for a while, and measures again, until nothing improves any more. This is
    the mixture of one round,

        share_i = floor / n + (1 - floor) * max(0, now_i - before_i) / sum over the n domains of the same

    (the paper gives no formula), and equal shares where no domain has got worse. Measure ``before`` on the dense
    network and ``now`` after ``schedule.until`` and after each round, on the same held-out data. With shares in hand
    ``torch.utils.data.WeightedRandomSampler`` draws from a concatenated dataset: the weight of a sample is the share of
    its domain over the number of samples of that domain.

    Args:
        before: the mean loss on each domain, by its name, in any unit that all of them have in common.
        now: the same of the pruned network.
        floor: what is divided among all domains alike, from 0 to below 1, so that none is forgotten meanwhile.

    Returns:
        The shares by name, none negative, which add up to 1.

    Raises:
        MethodError: the two name different domains or none, a loss is not finite, or ``floor`` is out of range.

    >>> shares = recovery_shares({"code": 2.0, "prose": 3.0}, {"code": 2.75, "prose": 3.25}, floor=0.2)
    >>> {name: round(share, 3) for name, share in shares.items()}
    {'code': 0.7, 'prose': 0.3}
    """
    check_number("floor", floor, 0, 1, "it is the share of the data that all domains have alike")
    if not before or before.keys() != now.keys():
        raise MethodError(
            f"Losses before pruning are given of {sorted(before)}, and now of {sorted(now)}. Measure the same domains "
            "both times, one at least."
        )
    for name in before:
        if not math.isfinite(before[name]) or not math.isfinite(now[name]):
            raise MethodError(
                f"The loss of the domain {name!r} is {before[name]!r} before pruning and {now[name]!r} now, but must "
                "be finite: measure it anew, or leave the domain out of both."
            )
    rises = {name: max(0.0, now[name] - before[name]) for name in before}
    whole = sum(rises.values())
    if whole == 0:
        return {name: 1 / len(rises) for name in rises}
    return {name: floor / len(rises) + (1 - floor) * rise / whole for name, rise in rises.items()}
