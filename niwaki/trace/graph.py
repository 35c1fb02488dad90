"""The record of one run: operators in order, the tensors between them, where in the source each was called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch

from niwaki.core.location import Location
from niwaki.core.numbers import Expression
from niwaki.core.repairs import Scalar
from niwaki.trace.describe import describe_graph
from niwaki.trace.extent import Place
from niwaki.trace.powers import Power
from niwaki.trace.replay import Decision


class Origin(Enum):
    """Where a tensor came from."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "model input"
    CONSTANT = "tensor that is neither parameter, buffer nor input"
    COMPUTED = "computed"


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for value number ``value`` among the arguments of a node."""

    value: int


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the run. ``root`` is the value whose memory it shares (itself if none)."""

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: Origin
    name: str
    root: int


@dataclass(frozen=True, slots=True)
class PythonCall:
    """The innermost torch function that Python code called: its number in the trace, the function (None: operators
    that no torch function called), the whole numbers it was given, the float attributes, and the floats that change
    with sizes."""

    key: int
    function: Callable[..., Any] | None
    numbers: tuple[Expression, ...] = ()
    scalars: tuple[Scalar, ...] = ()
    powers: tuple[Power, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator call. Tensors among the arguments are `Ref`; ``outputs`` are value numbers (None: no tensor)."""

    operator: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    location: Location
    call: PythonCall

    def inputs(self) -> Iterator[int]:
        """Value numbers of all tensors among the arguments."""
        for argument in (*self.args, *self.kwargs.values()):
            if isinstance(argument, Ref):
                yield argument.value
            elif isinstance(argument, (list, tuple)):
                yield from (item.value for item in argument if isinstance(item, Ref))


@dataclass(frozen=True, slots=True)
class Frozen:
    """A number that left the integers or entered arithmetic on values: it has to stay what it is."""

    expression: Expression
    location: Location


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One forward pass: its nodes, the value numbers of its outputs, the mode it ran in.

    ``error``: what it failed with, and ``inside`` whether that came out of an operator rather than from Python code.
    ``decisions``: what its data decided. ``ended``: how many nodes there were when Python let go of a value, by value
    number; of others it held on. ``both``: it is in eval mode, and tells what a run in train mode would do.
    ``remade``: buffers, and the values that were in their places in the end.
    ``escaped``: where values were handed to code that niwaki does not follow, such as numpy's, by value number.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    frozen: tuple[Frozen, ...]
    training: bool
    error: Exception | None = None
    inside: bool = False
    decisions: tuple[Decision, ...] = ()
    ended: Mapping[int, int] = field(default_factory=dict)
    both: bool = False
    escaped: Mapping[int, Location] = field(default_factory=dict)
    remade: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """All runs of one model over one numbering of values.

    ``contents``: what small constants held, by value number. ``overlooked``: types of objects among the outputs whose
    tensors do not count as outputs. ``unexplained``: shapes of outputs that no operator gave and no module holds.
    ``filled``: a run put tensors into a container that it was given. ``notes``: what
    else there is to say about the runs. ``tracked``: where the numbers were that runs could not read unnoticed.
    ``asked``: where a run first asked whether gradients are recorded.
    """

    values: tuple[Value, ...]
    runs: tuple[Run, ...]
    contents: Mapping[int, torch.Tensor]
    overlooked: tuple[str, ...] = ()
    unexplained: tuple[tuple[int, ...], ...] = ()
    filled: bool = False
    notes: tuple[str, ...] = ()
    tracked: frozenset[Place] = frozenset()
    asked: Location | None = None

    def __str__(self) -> str:
        return describe_graph(self)

    @cached_property
    def unseen(self) -> tuple[Value, ...]:
        """The parameters that no operator of any run was given."""
        seen = {number for run in self.runs for node in run.nodes for number in node.inputs()}
        return tuple(v for v in self.values if v.origin is Origin.PARAMETER and v.number not in seen)
