"""Choose structures to erase: those worth least for what they cost, as long as what is left is a valid network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import chain

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.dying import structure_units
from niwaki.core.space import BoolArray, Group, SearchSpace
from niwaki.core.structures import Erasures
from niwaki.errors import BudgetError
from niwaki.selection.objective import costs, mixed, prices
from niwaki.selection.request import SelectionRequest

_IN_THE_WAY = 32  # structures that are tried to be kept where the greedy selection has closed its own way


def erasable(space: SearchSpace, untrained: bool = False) -> dict[int, int]:
    """The unit of every structure that can be erased and that weights or gates make, by its number. (Only
    `SearchSpace.plan` erases parts of concatenations that no weights make.)

    ``untrained``: also those that no method can drive to zero. A router goes on choosing an expert whose weights are
    zero; no zeros make a network without a post-norm layer; and a loop that trains a class does not run the gates of
    the program that stands for it.
    """
    gates_run = space.erasures is not None and space.erasures.gates_run

    def can_go(group: Group) -> bool:
        assert group.structure is not None
        one = space.structures[group.structure]
        if not untrained and (one.router is not None or (one.gated and not gates_run)):
            return False
        if one.layer is not None:
            return untrained
        return one.gated or any(piece.role.produces for piece in group.slices)

    return {group.structure: group.first for group in space.groups if group.structure is not None and can_go(group)}


def erase_structures(space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
    """The units to keep, [num_units], where whole structures go until every limit of the ``request`` is met, or no
    other can.

    H2SPG's greedy selection (Only-Train-Once v3, section 3.3): by increasing saliency, here over the cost that erasing
    saves beside what is erased already, each is erased if outputs still follow from inputs without it, and skipped
    otherwise. What is inside of an erased structure costs nothing more, and is not asked for; what has been erased from
    the inside of a structure is no longer part of its saliency. At last those return, the most salient first, without
    which the limits are met as well.

    Where the limits are not met by then, since what went has left others without which outputs would hang in the air,
    it is done once more without each of the smallest structures that went (experts are not in the way of others), and
    by decreasing cost; of the choices that meet the limits that of the most saliency is taken.

    ``saliency`` [num_units] is not negative.
    """
    limits, staying = request.limits, request.held(space)
    first = _erased(space, saliency, saliency, request)
    units = list(erasable(space, request.untrained).values())
    present = request.present(space)

    def met(keep: BoolArray) -> bool:
        return all(cost <= limits[m] for m, cost in costs(space.cost_model, keep, limits).items())

    if met(first) or not units:
        return first
    others = [_erased(space, np.ones_like(saliency), saliency, request)]
    gone = {number: unit for number, unit in erasable(space).items() if present[unit] and not first[unit]}
    for number in sorted(gone, key=lambda number: space.structures[number].macs)[:_IN_THE_WAY]:
        barred = staying.copy()
        barred[gone[number]] = True
        others.append(_erased(space, saliency, saliency, request.holding(barred)))
    found = [keep for keep in others if met(keep)]
    return max(found, key=lambda keep: float(saliency[units][keep[units]].sum()), default=first)


def _erased(space: SearchSpace, order: FloatArray, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
    """The greedy selection itself, by ``order`` [num_units] over cost."""
    limits, staying, keep = request.limits, request.held(space), request.present(space)
    units = erasable(space, request.untrained)
    if space.erasures is None or not units:
        return keep
    model, trial = space.cost_model.merged(), space.erasures.trial()
    before = [number for number, unit in units.items() if not keep[unit]]
    for number in before:
        trial.erase(number)
    around = {number: {*space.erasures.around(number)} for number in units}
    nested = {number for number in units if len(around[number]) > 1}

    def without(erased: Collection[int]) -> BoolArray:
        left = keep.copy()
        left[[unit for number, unit in units.items() if not around[number].isdisjoint(erased)]] = False
        return left

    dense, left = costs(model, np.ones_like(keep), limits), without(before)
    may = {n for n, unit in units.items() if left[unit] and not staying[unit]}
    blocks = space.erasures.blocks({number: float(saliency[unit]) for number, unit in units.items()})
    waiting = [block for block in blocks if may.issuperset(block)]
    members = {block: [units[number] for number in block] for block in waiting}
    priced, erased = False, list[tuple[int, ...]]()
    inner = order.copy()  # without what is erased inside
    while waiting:
        over = {m: cost - limits[m] for m, cost in costs(model, left, limits).items() if cost > limits[m]}
        if not over:
            break
        if not priced:  # what a structure costs, and is worth, changes only with those inside of it
            price = mixed(prices(model, left, over), dense, over)
            key = {block: inner[own].sum() / price[own].sum() for block, own in members.items()}
            waiting.sort(key=lambda block: (key[block], block), reverse=True)
        block = waiting.pop()
        priced = True
        if len(block) > 1 and space.erasures.why_not([*before, *chain(*erased), *block]) is not None:
            continue
        if all(trial.erase(number) is None for number in block):
            erased.append(block)
            priced = nested.isdisjoint(block)
            left[members[block]] = False
            for number in block:
                outer = [units[one] for one in space.erasures.around(number)[1:] if one in units]
                inner[outer] = (inner[outer] - inner[units[number]]).clip(min=0)
            if inside := {one for one in nested if not around[one].isdisjoint(block)}:
                left[[units[one] for one in inside]] = False
                waiting = [one for one in waiting if inside.isdisjoint(one)]
    for block in sorted(erased, key=lambda block: -saliency[members[block]].sum()):  # steps are coarse: is any left?
        back = without({*before, *chain(*erased)} - {*block})
        rest = [*before, *chain(*(other for other in erased if other != block))]
        met = all(cost <= limits[measure] for measure, cost in costs(model, back, limits).items())
        if met and space.erasures.why_not(_outermost(space.erasures, rest)) is None:
            left = back
            erased.remove(block)
    return left


def chosen_with_care(space: SearchSpace, choose: Callable[[], BoolArray]) -> BoolArray:
    """The units that ``choose()`` keeps, [num_units]; of a second try, if these structures cannot be erased together
    for a reason that trials look for from then on."""
    keep = choose()
    if space.erasures is None:
        return keep
    gone = [group.structure for group in space.groups if group.structure is not None and not keep[group.first]]
    return keep if space.erasures.why_not(_outermost(space.erasures, gone)) is None else choose()


def how_many_erased(space: SearchSpace, keep: BoolArray) -> int:
    """The structures that are not there where ``keep`` [num_units] is, those inside of others among them."""
    units = structure_units(space)
    around = {number: [number] if space.erasures is None else space.erasures.around(number) for number in units}
    return sum(any(one in units and not keep[units[one]] for one in around[number]) for number in units)


def with_what_goes_along(space: SearchSpace, keep: BoolArray, removed: BoolArray | None) -> BoolArray:
    """``keep`` [num_units] where structures inside of others that are erased count as kept, unless they are among those
    ``removed`` before: they go with the cut, and nothing has to act on them."""
    found = keep.copy()
    if space.erasures is not None:
        units = structure_units(space)
        for number, unit in units.items():
            if any(not keep[units[one]] for one in space.erasures.around(number)[1:] if one in units):
                found[unit] = removed is None or not removed[unit]
    return found


def _outermost(erasures: Erasures, numbers: Collection[int]) -> list[int]:
    """Without those that are in another."""
    return [one for one in numbers if not any(outer in numbers for outer in erasures.around(one)[1:])]


def valid_erasures(space: SearchSpace, gone: BoolArray) -> BoolArray:
    """The structures of ``gone`` [num_units] that can be erased together: the largest first, each if that is valid."""
    found = np.zeros(space.num_units, dtype=bool)
    units = erasable(space)
    if space.erasures is None or not gone.any():
        return found
    trial, listed = space.erasures.trial(), space.structures
    for number in sorted(units, key=lambda number: (-listed[number].macs, -listed[number].params, number)):
        outer = [units[one] for one in space.erasures.around(number)[1:] if one in units]
        whole = all(gone[units[one]] for one in space.erasures.together(number))
        if whole and (found[outer].any() or trial.erase(number) is None):
            found[units[number]] = True
    return found


def check_some(space: SearchSpace, untrained: bool = False) -> None:
    """Raise `BudgetError` if there is nothing to erase."""
    if not erasable(space, untrained):
        if others := erasable(space, untrained=True):
            if all(space.structures[number].layer is not None for number in others):
                raise BudgetError(
                    "There is no structure that a method could drive to zero: all that can be erased are post-norm "
                    "layers, and no zeros make a network without one. Erase layers before or after the training: "
                    "niwaki.choose(space, scores, budget, remove='structures')."
                )
            if all(space.structures[number].router is None for number in others):
                raise BudgetError(
                    "There is no structure that a method could drive to zero: all that can be erased has gates in a "
                    "program, which a loop that trains the class does not run. Leave out as_graph=True; or erase "
                    "before or after the training: niwaki.choose(space, scores, budget, remove='structures')."
                )
            raise BudgetError(
                "There is no structure that a method could drive to zero: all that can be erased are experts, and a "
                "router goes on choosing an expert whose weights are zero. Erase experts before or after the "
                "training: niwaki.choose(space, scores, budget, remove='structures')."
            )
        raise BudgetError(
            f"There is no structure that could be erased: {_why_none(space)} Use remove='units' to make "
            "layers narrower."
        )


def check_erased(
    space: SearchSpace,
    keep: BoolArray,
    limits: Mapping[str, float],
    untrained: bool = False,
    silent: BoolArray | None = None,
) -> None:
    """Raise `BudgetError` if ``keep``, the result of `erase_structures`, costs more than ``limits``. ``silent``
    [num_units]: what stayed because its scores say nothing."""
    candidates = erasable(space, untrained)
    left_out = [space.structures[number] for number in erasable(space, untrained=True).keys() - candidates.keys()]
    experts = sum(one.router is not None for one in left_out)
    layers = sum(one.layer is not None for one in left_out)
    stay = f" ({experts} experts stay while a method trains; niwaki.choose can erase them.)" if experts else ""
    stay += f" ({layers} post-norm layers stay while a method trains; niwaki.choose can erase them.)" if layers else ""
    if terms := len(left_out) - experts - layers:
        stay += (
            f" ({terms} terms with gates stay while a method trains: the gates are in a program, which a loop that "
            "trains the class does not run. Leave out as_graph=True, or use niwaki.choose.)"
        )
    untold = [number for number, unit in candidates.items() if silent is not None and silent[unit]]
    if not all(space.structures[number].bare for number in untold):
        stay += (
            f" ({len(untold)} stay because the scores say nothing of them: their criterion is for units of another "
            "kind. Use one such as 'magnitude' or 'taylor1'.)"
        )
    elif untold:
        stay += (
            f" ({len(untold)} stay because they have no parameters, and the scores say nothing of them: with batches "
            "and loss_fn niwaki.score does, by the gradients of their gates.)"
        )
    for measure, reached in costs(space.cost_model, keep, limits).items():
        if reached > limits[measure]:
            dense = costs(space.cost_model, np.ones_like(keep), limits)[measure]
            erased = how_many_erased(space, keep)
            limit = f"{measure} <= {limits[measure]:,.0f} ({limits[measure] / dense:.1%} of {dense:,.0f})"
            raise BudgetError(
                f"The budget {limit} cannot be met by erasing: without {erased} of {len(candidates)} structures "
                f"{reached:,.0f} ({reached / dense:.1%}) remain, and no other can go beside them. Ask for more "
                f"{measure}, or make layers narrower too.{stay}"
            )


def free_note(space: SearchSpace, keep: BoolArray, limits: Mapping[str, float], untrained: bool = False) -> str | None:
    """A sentence that says which structures of ``keep`` could go as well, all of them together, and stay because that
    saves nothing of any limit, such as shortcuts and poolings under a limit in MACs; None if there are none."""
    units = erasable(space, untrained)
    if not limits or space.erasures is None or not units:
        return None
    saved = prices(space.cost_model.merged(), keep, limits)
    around = {number: space.erasures.around(number) for number in units}
    here = {number for number in units if all(keep[units[one]] for one in around[number] if one in units)}
    trial = space.erasures.trial()
    for number in _outermost(space.erasures, units.keys() - here):
        trial.erase(number)
    free = {number for number in here if all(price[units[number]] <= 0 for price in saved.values())}
    stay = [number for number in sorted(_outermost(space.erasures, free)) if trial.erase(number) is None]
    if not stay:
        return None
    names = ", ".join(space.structures[number].name for number in stay[:2])
    more = f" and {len(stay) - 2} more" if len(stay) > 2 else ""
    stays, them = ("stays", "it") if len(stay) == 1 else ("stay", "them")
    return (
        f"{names}{more} {stays}: to erase {them} would save no {' or '.join(limits)}. A limit in units counts each "
        "structure as one, and space.plan erases by hand."
    )


def _why_none(space: SearchSpace) -> str:
    erasures = space.erasures
    if erasures is None or not erasures.listed:
        return "the search space was made without erase=True, or no result of the network joins others by an addition."
    by_hand = [erasures.listed[number].name for number in structure_units(space)]
    if by_hand:
        return (
            f"nothing tells what {', '.join(by_hand[:2])}{' and others' * (len(by_hand) > 2)} would be worth, which "
            "only space.plan erases (parts of concatenations without parameters)."
        )
    reasons = dict.fromkeys(f"{one.name}: {one.refused}" for one in erasures.listed if one.refused)
    return f"{'; '.join(list(reasons)[:2])}."
