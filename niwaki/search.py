"""Build the search space of a model: trace a run, solve its equations, try a cut."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal, overload

import numpy as np
import torch

from niwaki.core.integrations import registered
from niwaki.core.names import named_parameters
from niwaki.core.space import SearchSpace
from niwaki.erasing.bare_streams import note_of
from niwaki.erasing.bypasses import bypasses_of
from niwaki.erasing.concatenation import RunFlow, concatenated
from niwaki.erasing.erasures import erasures_of
from niwaki.erasing.experts import ErasableExperts, with_experts
from niwaki.erasing.found_erasures import FoundErasures
from niwaki.erasing.routers import chosen_among
from niwaki.errors import UnknownName, first_line
from niwaki.program.entry import calls_of, program_of
from niwaki.program.module import Program
from niwaki.rules.constraints import Constraints
from niwaki.rules.label import Label
from niwaki.selection import uniform
from niwaki.solve.build import Builder
from niwaki.solve.dry_run import dry_run
from niwaki.solve.propagate import propagate
from niwaki.surgery.leftovers import remember_beside
from niwaki.trace.fidelity import faithful_trace
from niwaki.trace.graph import Graph
from niwaki.trace.inventory import Inventory
from niwaki.trace.outside import preserved_outside
from niwaki.trace.remade import may_be_remade
from niwaki.trace.structures import ExampleCall
from niwaki.unions.space import UnionSpace


@contextmanager
def without_collector() -> Iterator[None]:
    """Switch Python's garbage collector off inside. It walks all objects of the process whenever many are new; an
    analysis creates many objects, and would take twice as long."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


_NAMED = 3  # the number of modules that a note names


@overload
def search_space(
    model: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Any = ...,
    ignored: Sequence[str] = ...,
    inner: bool = ...,
    rehearse: bool = ...,
    allow_inexact: bool = ...,
    as_graph: bool = ...,
    layout: Literal["free", "uniform"] = ...,
    erase: bool | Literal["streams"] = ...,
    required: Sequence[str] = ...,
    *,
    streams: Literal["shared"] = ...,
) -> SearchSpace: ...


@overload
def search_space(
    model: torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Any = ...,
    ignored: Sequence[str] = ...,
    inner: bool = ...,
    rehearse: bool = ...,
    allow_inexact: bool = ...,
    as_graph: bool = ...,
    layout: Literal["free", "uniform"] = ...,
    erase: bool | Literal["streams"] = ...,
    required: Sequence[str] = ...,
    *,
    streams: Literal["union"],
) -> UnionSpace: ...


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
    erase: bool | Literal["streams"] = False,
    required: Sequence[str] = (),
    *,
    streams: Literal["shared", "union"] = "shared",
) -> SearchSpace | UnionSpace:
    """Find the prunable units of ``model``, by running it in eval mode, and in train mode where that may differ.

    Args:
        model: any module that runs, on any device, in any mode; or an exported program.
        example_inputs: a tensor or tuple is positional, a dict is keywords, a list of these is several calls (for code
            that takes different paths). The cost is that of the first call. For an exported program it may be None: the
            inputs of the export are used.
        ignored: names or patterns of parameters, or names of modules, that must not be pruned.
        inner: in a dimension that is a product, such as (head, position in the head), offer the inner factor as units
            too; they overlap with the outer ones.
        rehearse: cut by a random plan, run the result, and pin dimensions whose sizes are not as expected.
        allow_inexact: also offer units whose removal changes the result although they are zero: the width that a
            LayerNorm or a softmax runs over; with ``erase``, whole post-norm layers. Their groups have the reason in
            ``group.inexact``, and a cut is exact only for plans that keep all their units.
        as_graph: export the model and analyse the program: all sizes in it can follow a cut, also those that are
            numbers in the source. Such a plan is for ``niwaki.cut(..., as_graph=True)``. The program is that of eval
            mode, for one call and its shapes.
        layout: ``uniform`` ties groups that are alike (of one size, with the same role in modules of one class). They
            keep equal numbers of units, each its own choice, as a configuration with one number for all layers
            requires; for models of transformers (`niwaki.huggingface`) only numbers that the configuration accepts can
            be chosen, such as a hidden width that is a multiple of the number of heads. With ``erase``, only whole
            layers are erased.
        erase: offer, too, structures that can vanish as a whole (``space.structures``): branches of residual blocks,
            halves of transformer layers, inception branches, anything whose result reaches the rest of the network
            through additions and concatenations only. Each is a group of one unit, which
            ``niwaki.choose(..., remove="structures")`` removes. An output that follows from any input always follows
            from at least one of these. ``"streams"``, for an exported program: the stream itself, too, where it is
            added, as x in x + f(x); without it f(x) is left.
        required: with ``erase``, names of inputs (parameters of ``forward``): outputs that follow from one of them go
            on following from it.
        streams: ``union`` lets every branch that is added to a residual stream keep channels of its own, and the stream
            carry their union. It finds structures as ``erase=True`` does, and returns a `niwaki.unions.UnionSpace`,
            for `niwaki.score` and `niwaki.choose`. With ``shared`` all branches of a stream have the same channels.

    The model is restored exactly, also after an error. The space refers to the model and owns no weights.

    Raises:
        TraceError: the model does not run on these inputs, or cannot be exported.
        UnknownName: a pattern in ``ignored`` matches nothing, ``layout`` is unknown, a flag is not True or False, or no
            input has a name in ``required``.
        PlanError: with ``streams="union"``, no branch can have channels of its own.

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
    flags = {"inner": inner, "rehearse": rehearse, "allow_inexact": allow_inexact, "as_graph": as_graph}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UnknownName(f"{name}={flag!r} must be True or False.")
    if streams not in ("shared", "union"):
        raise UnknownName(
            f"There is no streams={streams!r}. Choose 'shared' (all branches of a residual stream have the same "
            "channels) or 'union' (each has channels of its own)."
        )
    if not isinstance(erase, bool) and erase != "streams":
        raise UnknownName(f"erase={erase!r} must be True, False or 'streams'.")
    if erase and as_graph and layout == "uniform":
        raise UnknownName(
            "erase=True erases whole layers of the model's class with layout='uniform', and an exported program has no "
            "layers. Leave out as_graph=True or layout='uniform'."
        )
    erase = erase or streams == "union"
    calls = calls_of(model, example_inputs)
    model = program_of(model, calls[0], as_graph)
    if erase == "streams" and not isinstance(model, Program):
        raise UnknownName(
            "erase='streams' is for exported programs: the code of a class goes on adding what it names. Use "
            "as_graph=True, or erase=True."
        )
    if streams == "union" and isinstance(model, Program):
        raise UnknownName(
            "streams='union' gives channels of their own to layers of a model, and an exported program has none. Cut "
            "the model, and export the small network."
        )
    with preserved_outside(model.modules()):
        space = _space(
            model,
            calls,
            _matching(model, ignored),
            inner,
            rehearse,
            allow_inexact,
            layout,
            _names(required, bool(erase)),
            erase == "streams",
        )
    return UnionSpace.of(space) if streams == "union" else space


def _space(
    model: torch.nn.Module,
    calls: tuple[ExampleCall, ...],
    matching: dict[str, str],
    inner: bool,
    rehearse: bool,
    allow_inexact: bool,
    layout: str,
    required: tuple[str, ...] | None,
    streams: bool,
) -> SearchSpace:
    """``required``: None where nothing is to be erased. ``streams``: the stream itself is a structure."""
    single = isinstance(model, Program)  # eval and train mode are the same
    graph = faithful_trace(model, calls, modes=(False,) if single else (False, True))
    given: list[dict[int, tuple[Label | None, ...]]] | None = None if required is None else []
    inexact = allow_inexact and given is not None and not single
    bypasses = bypasses_of(model, graph) if inexact else [()] * len(graph.runs)
    flows = [] if given is None else [RunFlow.of(graph, *one) for one in zip(graph.runs, bypasses, strict=True)]
    joined = None if given is None else concatenated(graph, flows)
    constraints = propagate(
        graph, allow_inexact=allow_inexact, given=given, structures=None if joined is None else joined.operands
    )
    _ignore(graph, constraints, matching)
    _hold_remade(model, graph, constraints)
    erasures = None
    if given is not None and joined is not None:
        erasures = erasures_of(
            model,
            graph,
            flows,
            joined,
            constraints,
            given,
            matching,
            calls,
            required or (),
            layout == "uniform",
            streams,
            inner,
        )
    looked_after = [it for known in registered() for it in known.looked_after(model)]
    builder = Builder(model, graph, constraints, inner, looked_after)
    notes = [
        f"The model does not run in train mode ({type(run.error).__qualname__}: {first_line(run.error)}), so only its "
        "eval mode was analysed."
        for run in graph.runs
        if run.error is not None
    ]
    notes += graph.notes
    if graph.overlooked:
        notes.append(
            f"The model also returns {', '.join(graph.overlooked)}; tensors inside do not count as outputs and may get "
            "smaller."
        )
    notes += [
        f"The model returns a tensor of shape {list(shape)} that no operator returned and no module holds, so it "
        "counts as a constant. If it is made of computed values, return those too: it may get smaller."
        for shape in graph.unexplained
    ]
    if graph.filled:
        notes.append(
            "The model puts tensors into a container among its inputs; these do not count as outputs and may get "
            "smaller. Return them beside the others if they have to keep their size."
        )
    notes += [*constraints.notes, *_unseen(graph, constraints)]
    if erasures is not None and erasures.found.streams:
        notes.append(note_of(erasures.found.streams))
    if single and given is not None and (chosen := chosen_among(graph, constraints, given)):
        notes.append(
            f"Whole experts leave the class of a model, and no exported program: {chosen[0]!r} chooses among some "
            "here. Use as_graph=False to erase them."
        )
    if single:
        notes.append("This is the space of an exported program: it does not cover other inputs or train mode.")
    if rehearse:
        notes += dry_run(graph, constraints, builder, calls, copied=given is not None)
    remember_beside(model)
    if layout != "uniform":
        space = builder.finished(notes, ())
    else:
        space = uniform(builder.finished(notes, [rule for known in registered() for rule in known.multiples(model)]))
    if erasures is not None and builder.copy_fault is not None:
        erasures = erasures.refused(builder.copy_fault)
    found: FoundErasures | ErasableExperts | None = erasures
    if given is not None and not single:
        found = with_experts(
            erasures, space, graph, constraints, given, matching, calls, looked_after, layout == "uniform",
            builder.copy_fault,
        )  # fmt: skip
    if isinstance(found, ErasableExperts):
        space = replace(space, notes=(*space.notes, *found.notes))
    return space if found is None else builder.erasable(space, found, found.homes())


def _unseen(graph: Graph, constraints: Constraints) -> list[str]:
    """The notes about parameters that no run reached: those inferred from siblings, and the others."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for value in graph.unseen:
        found[value.number in constraints.inferred].append(value.name)
    notes = []
    if found[False]:
        notes.append(
            f"No example call reached {_listed(found[False])}. They are not pruned, and code that uses them may not "
            "fit the cut network: give an example call that reaches them (example_inputs may be a list of calls)."
        )
    if found[True]:
        notes.append(
            f"No example call reached {_listed(found[True])}, but it reached similar ones: the cut network will fit "
            "them, and units of their own are not pruned. An example call that reaches them, with more tokens for "
            "instance, makes these units prunable too."
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    """The number of parameters, and the first modules that have them."""
    owners = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    more = f" and {len(owners) - _NAMED} more" if len(owners) > _NAMED else ""
    return f"{len(names)} of the parameters (in {', '.join(owners[:_NAMED])}{more})"


def _names(required: Sequence[str], erase: bool) -> tuple[str, ...] | None:
    """The names of required inputs; None if nothing is to be erased."""
    names = (required,) if isinstance(required, str) else required
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise UnknownName(f"required={required!r} must be a list of names of inputs, such as ['input_ids'].")
    if names and not erase:
        raise UnknownName(
            f"required={required!r} is for structures that can be erased, which are looked for with erase=True only."
        )
    return tuple(names) if erase else None


def _matching(model: torch.nn.Module, ignored: Sequence[str]) -> dict[str, str]:
    """The names of ignored parameters, each with the pattern that matches it."""
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
    """Pin buffers that the code may replace, although no run did: the code creates them in full size."""
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
