"""What each suite should show, and whether the rows bear it out: sentences, and whether they hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.accuracy.arms import ARMS, METHODS
from benchmarks.accuracy.results import Row
from benchmarks.accuracy.show import in_order, lost, mean, of

Verdict = tuple[str, bool]
Arms = Mapping[str, Sequence[Row]]  # the rows of each arm at one budget, and of dense training
POINTS = 1.0  # of accuracy that the defaults may lose


def compared(at: str, arms: Arms) -> list[Verdict]:
    """The best method beats every baseline of equal cost; HESSO is below none but it."""
    value = {arm: mean(rows) for arm, rows in arms.items() if arm != "dense"}
    ours = [arm for arm in value if arm in METHODS]
    others = [arm for arm in value if arm not in METHODS]
    if not ours or not others:
        return []
    best, rival = max(ours, key=value.__getitem__), max(others, key=value.__getitem__)
    gap = value[best] - value[rival]
    found = [(f"{at}: the best method is {best}, by {gap:+.2f} better than the best baseline, {rival}", gap > 0)]
    if "hesso" in ours:
        above = [arm for arm in value if arm not in ("hesso", best) and value[arm] > value["hesso"]]
        found.append((f"{at}: only the best is better than hesso ({', '.join(above) or 'no other'} is)", not above))
    return found


def corrected(at: str, arms: Arms) -> list[Verdict]:
    """HESSO-CRIC is at least HESSO."""
    if not {"hesso", "hesso-cric"} <= set(arms):
        return []
    gaps = lost(arms["hesso"], arms["hesso-cric"])
    gap = mean(arms["hesso-cric"]) - mean(arms["hesso"])
    return [(f"{at}: hesso-cric is at least hesso ({gap:+.2f}{_spread(gaps)})", gap >= 0)]


def defaulted(at: str, arms: Arms) -> list[Verdict]:
    """HESSO loses no more than a point of accuracy; its loss is no higher than that of the network from scratch."""
    if "hesso" not in arms:
        return []
    if arms["hesso"][0].measure == "loss":
        if "narrow" not in arms:
            return []
        gap = mean(arms["narrow"]) - mean(arms["hesso"])
        return [(f"{at}: hesso's loss is not above the narrow network's ({gap:+.3f} nats)", gap <= 0)]
    if "dense" not in arms:
        return []
    gaps = lost(arms["hesso"], arms["dense"])
    words = f"{statistics.mean(gaps):.2f}{_spread(gaps)}"
    if "narrow" in arms:  # what a network of this cost loses without any pruning
        words += f"; narrow loses {statistics.mean(lost(arms['narrow'], arms['dense'])):.2f}"
    holds = statistics.mean(gaps) <= POINTS
    return [(f"{at}: hesso loses at most {POINTS:g} point to dense training ({words})", holds)]


def _spread(gaps: Sequence[float]) -> str:
    return f" ± {statistics.stdev(gaps):.2f} by seed" if len(gaps) > 1 else ""


CLAIMS: Mapping[str, Callable[[str, Arms], list[Verdict]]] = {
    "compare": compared,
    "deep": corrected,
    "defaults": defaulted,
}


def verdicts(suite: str, rows: Sequence[Row]) -> list[Verdict]:
    """What ``suite`` should show at each budget, as far as the rows allow to say."""
    found: list[Verdict] = []
    for task, budget, share in in_order((row.task, row.budget, row.share) for row in rows if row.share < 1):
        dense = of(rows, task, "dense", budget, 1.0)
        arms = {arm: same for arm in ARMS if (same := of(rows, task, arm, budget, share))}
        found += CLAIMS[suite](f"{task}, {share:.0%} of the {budget}", arms | ({"dense": dense} if dense else {}))
    return found
