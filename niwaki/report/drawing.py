"""A search space as a graph: modules that own tensors, the groups that run through them, and structures that hold some.

Each format is one file and one import line in `niwaki.report.draw`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from niwaki.core.describe import counted, percent
from niwaki.core.names import named_modules
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.report.inspection import GroupFigures, PinReason, group_figures, line_of, reasons

CHARGED = ("#c2410c", "#b91c1c", "#a16207", "#be185d", "#7e22ce", "#854d0e", "#9f1239", "#6b21a8")


FREE_OF_CHARGE = "#9ca3af"  # for reasons that hold back no parameter, such as the inside of a convolution's kernel


@dataclass(frozen=True, slots=True)
class Pinned:
    """The dimensions of a module that one reason pins: the number of the reason, and a text for each dimension."""

    reason: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModuleNode:
    """A module that owns parameters or buffers itself: its name, its class, its number of parameters, and its pins."""

    name: str
    kind: str
    params: int
    pins: tuple[Pinned, ...]


@dataclass(frozen=True, slots=True)
class PathStop:
    """A module that a group runs through: whether it computes the units, and whether it reads them."""

    block: int
    computes: bool
    reads: bool


@dataclass(frozen=True, slots=True)
class GroupPath:
    """A group and the modules it runs through, in the order of the model. ``kept``: the units that a plan keeps, if the
    drawing is of one."""

    group: GroupFigures
    stops: tuple[PathStop, ...]
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class StructurePath:
    """A structure that can be erased, what is to say about it, and the modules whose parameters go with it, in the
    order of the model. ``makes``: those that make its result. ``erased``: whether a plan erases it."""

    name: str
    about: str
    macs: int
    params: int
    parameters: tuple[str, ...]
    blocks: tuple[int, ...]
    makes: tuple[int, ...]
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """The content of a drawing, in no particular format."""

    title: str
    summary: str
    blocks: tuple[ModuleNode, ...]
    lines: tuple[GroupPath, ...]
    reasons: tuple[PinReason, ...]
    structures: tuple[StructurePath, ...] = ()

    def colour(self, reason: int) -> str:
        """The colour of a reason; reasons that hold back parameters get different ones, as long as there are enough."""
        return CHARGED[min(reason, len(CHARGED) - 1)] if self.reasons[reason].params else FREE_OF_CHARGE


def drawing(space: SearchSpace, title: str, plan: Plan | None = None, model: nn.Module | None = None) -> Drawing:
    """The drawing of a space: its modules, its groups, and the modules that each group runs through; with a ``plan``,
    also what it keeps of each. ``model``: the network as it was analysed, if that of the space may have shrunk since.

    >>> import niwaki, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> drawn = drawing(niwaki.search_space(net, torch.randn(1, 4)), "two layers")
    >>> [block.name for block in drawn.blocks], [(stop.block, stop.computes) for stop in drawn.lines[0].stops]
    (['0', '2'], [(0, True), (1, False)])
    """
    why = reasons(space)
    dense = space.model if model is None else model
    blocks = _blocks(space, dense, {reason.text: number for number, reason in enumerate(why)})
    number_of = {block.name: number for number, block in enumerate(blocks)}
    figures = {figure.name: figure for figure in group_figures(space)}
    lines = []
    for group in space.width_groups:
        roles: defaultdict[int, set[bool]] = defaultdict(set)
        for piece in group.slices:
            roles[number_of[_owner(piece.tensor)]].add(piece.role.produces)
        stops = tuple(PathStop(block, True in roles[block], False in roles[block]) for block in sorted(roles))
        lines.append(GroupPath(figures[group.name], stops, None if plan is None else len(plan.kept[group.name])))
    lines.sort(key=lambda line: (line.stops[0].block, -line.stops[-1].block))
    gone = _erased(space, plan)
    wholes = [
        StructurePath(
            one.name,
            str(one),
            one.macs,
            one.params,
            tuple(one.parameters),
            tuple(sorted({number_of[_owner(name)] for name in one.parameters})),
            tuple(sorted({number_of[_owner(name)] for name in one.producers})),
            number in gone,
        )
        for number, one in enumerate(space.structures)
        if one.erasable and one.parameters
    ]
    wholes.sort(key=lambda whole: (whole.blocks[0], -whole.blocks[-1]))
    units = sum(group.units for group in space.width_groups)
    summary = (
        f"{units:,} units in {counted(len(space.width_groups), 'group')}; {percent(space.coverage)} of the "
        f"{space.cost().params:,} parameters lie in at least one unit."
    )
    if wholes:
        summary += f" {counted(len(wholes), 'structure')} can be erased, each by itself."
    return Drawing(title, summary, blocks, tuple(lines), why, tuple(wholes))


def _erased(space: SearchSpace, plan: Plan | None) -> set[int]:
    """The numbers of the structures that the plan erases."""
    if plan is None:
        return set()
    return {one.structure for one in space.groups if one.structure is not None and not len(plan.kept[one.name])}


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _blocks(space: SearchSpace, model: nn.Module, numbers: dict[str, int]) -> tuple[ModuleNode, ...]:
    pins: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for pin in space.pins:
        where = f" at {line_of(pin.location)}" if line_of(pin.location) else ""
        leaf = pin.parameter.rpartition(".")[2]
        text = f"{leaf} dim {pin.dim}, {pin.count:,} positions: {pin.reason}{where}"
        pins[_owner(pin.parameter)][numbers[pin.reason]].append(text)
    owners = {_owner(place.tensor) for place in space.dims} | set(pins)
    owners |= {_owner(name) for one in space.structures for name in one.parameters}
    return tuple(
        ModuleNode(
            name=name,
            kind=type(module).__name__,
            params=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
            pins=tuple(Pinned(number, tuple(pins[name][number])) for number in sorted(pins[name])),
        )
        for name, module in named_modules(model)
        if name in owners
    )


Render = Callable[[Drawing], str]


@dataclass(frozen=True, slots=True)
class Format:
    """How to draw, and what raises a `NiwakiError` where something for it is missing."""

    render: Render
    ready: Callable[[], None]


FORMATS: dict[str, Format] = {}


def form(suffix: str, ready: Callable[[], None] = lambda: None) -> Callable[[Render], Render]:
    """Register the decorated function for file names with this ending."""

    def register(render: Render) -> Render:
        FORMATS[suffix] = Format(render, ready)
        return render

    return register
