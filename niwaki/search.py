"""From a model to its search space: trace a run, solve its equations, try a cut."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch

from niwaki.core.integrations import registered
from niwaki.core.names import named_parameters
from niwaki.core.space import SearchSpace
from niwaki.errors import UnknownName, first_line
from niwaki.program.entry import calls_of, program_of
from niwaki.program.module import Program
from niwaki.selection import uniform
from niwaki.solve.build import Builder
from niwaki.solve.constraints import Constraints
from niwaki.solve.dry_run import dry_run
from niwaki.solve.propagate import propagate
from niwaki.surgery.leftovers import remember_beside
from niwaki.trace.fidelity import faithful_trace
from niwaki.trace.graph import Graph
from niwaki.trace.inventory import Inventory
from niwaki.trace.outside import preserved_outside
from niwaki.trace.remade import may_be_remade
from niwaki.trace.structures import ExampleCall


@contextmanager
def without_collector() -> Iterator[None]:
    """Python looks through all objects of the process whenever many are new; in an analysis, which makes nothing else,
    that would take as long as all the rest."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


_NAMED = 3  # modules that a note names


@without_collector()
def search_space(
    model: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Any = None,
    ignored: Sequence[str] = (),
    inner: bool = False,
    rehearse: bool = True,
    allow_inexact: bool = False,
    as_graph: bool = False,
    layout: Literal["free", "uniform"] = "free",
) -> SearchSpace:
    """Find out what can leave ``model``, by running it in eval mode, and in train mode where that may differ.

    Args:
        model: any module that runs, on any device, in any mode; or an exported program.
        example_inputs: a tensor or tuple is positional, a dict is keywords, a list of these several calls (for code
            that takes different paths). The cost is counted for the first. An exported program may do without: it
            knows the inputs that it was exported with.
        ignored: names or patterns of parameters, or names of modules, that must stay.
        inner: where a dimension is a product, such as (head, position in the head), offer the inner factor as units
            too; these overlap with the outer ones.
        rehearse: cut by a random plan and run the result, and pin what does not come out as expected.
        allow_inexact: offer units, too, whose removal changes the result although they are zero: the width that a
            LayerNorm or a softmax runs over. Their groups say so (``group.inexact``), and a cut is exact only for plans
            that leave them whole.
        as_graph: export the model and analyse the program: all sizes in it can follow, those written as numbers in
            the source too. Such a plan is for ``niwaki.cut(..., as_graph=True)``. The program is that of eval mode, of
            one call and of its shapes.
        layout: ``uniform`` ties groups that are alike (of one size, with the same part in modules of one class). They
            keep equally many units, each its own, as a configuration with one number for all layers wants it; and only
            numbers of units can be chosen that the configuration of a model niwaki knows accepts (`niwaki.huggingface`:
            a hidden width that is a multiple of the number of heads).

    The model is left exactly as it was, also after an error. The space refers to the model and owns no weights.

    Raises:
        TraceError: the model does not run on these inputs, or cannot be exported.
        UnknownName: a pattern in ``ignored`` matches nothing, or there is no such layout.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> [(group.name, group.units) for group in space.groups]
        [('0', 8)]
        >>> print(space.pins[0])
        0.weight dim 1 (4 positions): it meets an input of the model
    """
    if layout not in ("free", "uniform"):
        raise UnknownName(f"There is no layout {layout!r}. Choose 'free' or 'uniform' widths across layers.")
    calls = calls_of(model, example_inputs)
    model = program_of(model, calls[0], as_graph)
    with preserved_outside(model.modules()):
        return _space(model, calls, _matching(model, ignored), inner, rehearse, allow_inexact, layout)


def _space(
    model: torch.nn.Module,
    calls: tuple[ExampleCall, ...],
    matching: dict[str, str],
    inner: bool,
    rehearse: bool,
    allow_inexact: bool,
    layout: str,
) -> SearchSpace:
    single = isinstance(model, Program)  # eval and train mode are the same
    graph = faithful_trace(model, calls, modes=(False,) if single else (False, True))
    constraints = propagate(graph, allow_inexact=allow_inexact)
    _ignore(graph, constraints, matching)
    _hold_remade(model, graph, constraints)
    builder = Builder(
        model, graph, constraints, inner, [it for known in registered() for it in known.looked_after(model)]
    )
    notes = [
        f"The model does not run in train mode ({type(run.error).__qualname__}: {first_line(run.error)}), so only its "
        "eval mode was analysed."
        for run in graph.runs
        if run.error is not None
    ]
    notes += graph.notes
    if graph.overlooked:
        notes.append(
            f"The model also returns {', '.join(graph.overlooked)}; tensors inside are not taken for outputs and may "
            "get smaller."
        )
    notes += [
        f"The model returns a tensor of shape {list(shape)} that no operator gave and no module holds, so it is taken "
        "for a constant. If it is made of what the model computes, return that too: it may get smaller."
        for shape in graph.unexplained
    ]
    if graph.filled:
        notes.append(
            "The model puts tensors into a container among its inputs; these are not taken for outputs and may get "
            "smaller. Return them beside the others if they have to keep their size."
        )
    notes += [*constraints.notes, *_unseen(graph, constraints)]
    if single:
        notes.append("This is the space of an exported program: what other inputs or train mode would do is not in it.")
    if rehearse:
        notes += dry_run(graph, constraints, builder, calls)
    remember_beside(model)
    if layout != "uniform":
        return builder.finished(notes, ())
    return uniform(builder.finished(notes, [rule for known in registered() for rule in known.multiples(model)]))


def _unseen(graph: Graph, constraints: Constraints) -> list[str]:
    """What is said of parameters that no run touched: those of which siblings tell, and the others."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for value in graph.unseen:
        found[value.number in constraints.inferred].append(value.name)
    notes = []
    if found[False]:
        notes.append(
            f"No example call reached {_listed(found[False])}. They stay as they are, and code that uses them may not "
            "fit the cut network: give an example call that reaches them (example_inputs may be a list of calls)."
        )
    if found[True]:
        notes.append(
            f"No example call reached {_listed(found[True])}, but some that are like them: the cut network will fit "
            "them, and what is theirs alone stays. An example call that reaches them, with more tokens for instance, "
            "lets that leave too."
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    """How many parameters, and the first modules that have them."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    more = f" and {len(owners) - _NAMED} more" if len(owners) > _NAMED else ""
    return f"{len(names)} of the parameters (in {', '.join(owners[:_NAMED])}{more})"


def _matching(model: torch.nn.Module, ignored: Sequence[str]) -> dict[str, str]:
    """Parameter names that a pattern pins, each with the pattern."""
    patterns = (ignored,) if isinstance(ignored, str) else ignored
    if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UnknownName(f"ignored={ignored!r} must be a list of names or patterns, such as ['head', '*.bias'].")
    names = [name for name, _ in named_parameters(model)] if len(patterns) else []
    found: dict[str, str] = {}
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not matching:
            raise UnknownName(
                f"The pattern {pattern!r} in `ignored` matches no parameter of the model. Parameters are named like "
                f"{next(iter(names), '')!r}; use such a name, the name of a module, or a pattern with *."
            )
        found.update(dict.fromkeys(matching, pattern))
    return found


def _hold_remade(model: torch.nn.Module, graph: Graph, constraints: Constraints) -> None:
    """Buffers that the code may make anew, though no run did so, will be made as they are written."""
    seen = {graph.values[buffer].name for run in graph.runs for buffer, _ in run.remade}
    held = may_be_remade(Inventory.of(model)) - seen
    if held:
        why = constraints.reason("it meets a buffer that the code makes anew when it wants another one", None)
        for (number, _), (first, size) in constraints.ids_of.items():
            if graph.values[number].name in held:
                constraints.pinned.append((np.arange(first, first + size), why))


def _ignore(graph: Graph, constraints: Constraints, matching: dict[str, str]) -> None:
    for (number, _), (first, size) in constraints.ids_of.items():
        pattern = matching.get(graph.values[number].name)
        if pattern is not None:
            why = constraints.reason(f"it is ignored by the pattern {pattern!r}", None)
            constraints.pinned.append((np.arange(first, first + size), why))
