"""Record one run of a model: every operator call below autograd, with its argument and result tensors."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.core.location import Location
from niwaki.core.numbers import Expression, Literal
from niwaki.trace.calls import CallMode
from niwaki.trace.extent import Extent
from niwaki.trace.fake import FakeTensors, is_fake, needs_value
from niwaki.trace.gradients import grad_mode_watched
from niwaki.trace.graph import Frozen, Node, Origin, Ref, Run, Value
from niwaki.trace.inventory import Inventory
from niwaki.trace.memory import Memory
from niwaki.trace.module_calls import ModuleCalls
from niwaki.trace.operators import Traits, traits
from niwaki.trace.remade import remade
from niwaki.trace.replay import Decision, Decisions
from niwaki.trace.shape_only import Hollow
from niwaki.trace.source_lines import Lines
from niwaki.trace.structures import ExampleCall, contained, input_names, map_tensors, objects_in, tensors_in
from niwaki.trace.tracked import frozen_sink
from niwaki.trace.writes import Writes

_SMALL = 2**16  # the most entries of a constant that is kept, to be compared after a cut
# Operators of some devices only. Elsewhere torch runs the operators that they are composed of, and so does the
# recorder: a cut repairs numbers inside of them.
COMPOSED = {torch.ops.aten._fused_rms_norm.default}
_LEAVING = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__}  # for code that niwaki does not follow
_COMPOSITE = "CompositeImplicitAutograd"
_PLAIN = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format})


class _Known(weakref.ref[torch.Tensor]):
    """A tensor that has the value number ``number``."""

    __slots__ = ("number",)
    number: int


class _Ends:
    """Notes the number of nodes when a value was released. It holds no reference to the recorder, which would be a
    cycle."""

    __slots__ = ("ended", "nodes")

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.ended: dict[int, int] = {}

    def __call__(self, known: _Known) -> None:
        self.ended[known.number] = len(self.nodes)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers tensors by identity and notes each operator call."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from wrapping every operator call below in its compiler's switch."""
        return False

    def __init__(self, inventory: Inventory, pretence: FakeTensors, hollow: Hollow | None, extent: Extent) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._extent = extent
        self._inventory = inventory
        self._pretence = pretence
        self.hollow = hollow
        self.values: list[Value] = []
        self.contents: dict[int, torch.Tensor] = {}
        self._refs: list[Ref] = []  # one for each value
        self._known: dict[int, _Known] = {}
        self._memory = Memory()
        self._repointed: list[tuple[torch.Tensor, int]] = []  # with their content before the run
        self._nodes: list[Node] = []
        self._ends = _Ends(self._nodes)
        self._frozen: list[Frozen] = []
        self._inside = False
        self._opened = False
        self.decisions = Decisions(self._module)
        self.overlooked: set[str] = set()
        self.unexplained: set[tuple[int, ...]] = set()  # shapes of outputs of unknown origin
        self.asked: Location | None = None  # where code first asked whether gradients are recorded
        self.filled = False  # a run put tensors into a container that it was given
        self.tangled = False  # the output of a dropout was written to, which in eval mode is its input
        self._dropped: set[int] = set()
        self._read: set[int] = set()
        self._escaped: dict[int, Location] = {}
        self._calls = CallMode(weakref.proxy(self))  # no cycle: the many objects of a trace are freed at once
        self._lines = Lines(inventory)
        self._parameters = [parameter for _, parameter in inventory.parameters]
        self._writes = Writes(())
        for name, parameter in inventory.parameters:
            self._add(parameter, Origin.PARAMETER, name)
        for name, buffer in inventory.buffers:
            self._add(buffer, Origin.BUFFER, name)

    def run(self, model: torch.nn.Module, call: ExampleCall, training: bool) -> Run:
        """Record one forward pass."""
        self._nodes, self._frozen, self._inside, self._escaped = [], [], False, {}
        self._ends.nodes, self._ends.ended = self._nodes, {}
        self._writes = Writes(self._parameters)
        calls = ModuleCalls(self._known_number, self._nodes.__len__)
        error: Exception | None = None
        outputs: tuple[int, ...] = ()
        replaced: tuple[tuple[int, int], ...] = ()
        args, kwargs = map_tensors(call, lambda tensor: self._pretence.stand_in(tensor).detach().clone())
        given = list(tensors_in((args, kwargs)))
        names = input_names(model, args, kwargs)
        for tensor in given:
            self._add(tensor, Origin.INPUT, names.get(id(tensor), "model input"))
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(self._lines.watching(model, sys._getframe(), calls))
                token = frozen_sink.set(self._freeze)
                stack.callback(frozen_sink.reset, token)
                stack.enter_context(grad_mode_watched(self.asks_for_gradients))
                stack.enter_context(self)
                stack.enter_context(self._calls)
                result = model(*args, **kwargs)
            replaced = tuple((self.number_of(old), self.number_of(new)) for old, new in remade(self._inventory))
            outputs = tuple(self.number_of(tensor) for tensor in tensors_in(result))
            if not outputs:
                raise TypeError(f"it returned no tensor that niwaki can find, but {type(result).__qualname__}")
            returned = [self.values[number] for number in outputs]
            self.unexplained.update(one.shape for one in returned if one.origin is Origin.CONSTANT and not one.name)
            self.overlooked.update(objects_in(result))
            known = {id(tensor) for tensor in (*given, *tensors_in(result))}
            self.filled |= any(id(tensor) not in known for tensor in contained((args, kwargs)))
        except Exception as cause:  # noqa: BLE001 - any error of the user's code is reported, with the run recorded so far
            error = cause
        # Values in the result were not released, nor were values that Python read: their further use is not known.
        ended = {number: moment for number, moment in self._ends.ended.items() if number not in self._read}
        self._writes.undo()
        while self._repointed:
            self._know(*self._repointed.pop())
        decisions, self.decisions = tuple(self.decisions.made), Decisions(self._module)
        return Run(
            nodes=tuple(self._nodes),
            outputs=outputs,
            frozen=tuple(self._frozen),
            training=training,
            error=error,
            inside=self._inside,
            decisions=decisions,
            ended=ended,
            escaped=self._escaped,
            remade=replaced,
            calls=tuple(calls.made),
        )

    def survivors(self) -> list[torch.Tensor]:
        """The hollow tensors that are still referenced."""
        hollow = self.hollow
        if hollow is None:
            return []
        known = [one for one in self._known.values() if hollow.holds(self.values[one.number].root)]
        return [tensor for one in known if (tensor := one()) is not None]

    def number_of(self, tensor: torch.Tensor) -> int:
        """The value number of a tensor. A new tensor is the value that was last computed at its address, else a
        constant."""
        if self._pretence.active:
            tensor = self._pretence.stand_in(tensor)
        known = self._known.get(id(tensor))
        if known is not None and known() is tensor:
            return known.number
        wrapped = self._memory.number_of(tensor)
        if wrapped is not None:
            self._know(tensor, wrapped)
            self._read.add(wrapped)
            return wrapped
        return self._add(tensor, Origin.CONSTANT, self._inventory.attribute_of(tensor))

    def _known_number(self, tensor: torch.Tensor) -> int | None:
        """The value number of a tensor that has one already."""
        known = self._known.get(id(tensor))
        return known.number if known is not None and known() is tensor else None

    def reads(self, function: Callable[..., Any], tensor: torch.Tensor) -> None:
        number = self.number_of(tensor)
        self._read.add(number)
        if function in _LEAVING:
            self._escaped.setdefault(number, self._lines.here())
        if self.hollow is not None:
            self.hollow.refuse_reading(function, self.values[number].root)

    def repoints(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        before, number = self.number_of(tensor), self.number_of(other)
        if self.values[before].origin is not Origin.COMPUTED:  # it may outlive the run
            self._repointed.append((tensor, before))
        self._know(tensor, number)
        self._read.add(number)

    def asks_for_gradients(self) -> None:
        if self.asked is None:
            self.asked = self._lines.here()

    def tracks_sizes(self) -> bool:
        return self._extent.sizes and self._lines.module not in self._extent.unsized

    def drops(self, tensor: torch.Tensor) -> None:
        self._dropped.add(self.values[self.number_of(tensor)].root)

    def _add(self, tensor: torch.Tensor, origin: Origin, name: str, root: int | None = None) -> int:
        number = len(self.values)
        value = Value(number, tuple(tensor.shape), tensor.dtype, origin, name, number if root is None else root)
        self.values.append(value)
        self._refs.append(Ref(number))
        if self.hollow is not None and origin in (Origin.PARAMETER, Origin.INPUT):
            self.hollow.derive(number)
        self._know(tensor, number)
        if origin is Origin.COMPUTED or origin is Origin.INPUT:
            self._memory.note(tensor, value)
        return number

    def _know(self, tensor: torch.Tensor, number: int) -> None:
        known = _Known(tensor, self._ends)
        known.number = number
        self._known[id(tensor)] = known

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if isinstance(func, HigherOrderOperator):
            return self._look_into(func, args, kwargs or {})
        calls = self._calls
        outside, calls.resting = calls.resting, True
        try:
            return self._record(func, args, kwargs or {})
        finally:
            calls.resting = outside

    def _record(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = traits(func)
        if known.inquires:  # a fake tensor is asked for its device or layout
            return func(*args, **kwargs)
        if func in COMPOSED or (
            self._opened and torch._C._dispatch_has_kernel_for_dispatch_key(func._name, _COMPOSITE)
        ):
            with self:
                return func.decompose(*args, **kwargs)
        if self._pretence.active:
            args, kwargs = self._pretence.arguments(args), self._pretence.arguments(kwargs)
        given: list[int] = []
        arguments = tuple([self._reference(argument, given) for argument in args])
        named = {name: self._reference(argument, given) for name, argument in kwargs.items()}
        if known.writes:
            self._remember_written(known, args, kwargs)
        self._inside = True
        try:
            result, hollow = self._calculated(func, args, kwargs, given)
        except Exception as error:
            raise (needs_value(error, func, self._lines.here()) or error) from error
        self._inside = False
        root = None
        if known.viewing:
            first = next((a.value for a in arguments if isinstance(a, Ref)), None)
            root = None if first is None else self.values[first].root
        results = result if isinstance(result, (tuple, list)) else (result,)
        outputs = tuple([self._result(item, root) for item in results])
        self._nodes.append(Node(func, arguments, named, outputs, self._lines.here(), self._calls.current))
        if self.hollow is not None and self.hollow.derives([self.values[number].root for number in given]):
            self._mark(self.hollow, hollow, known, args, kwargs, outputs)
        return result

    def _look_into(self, func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that calls functions (`torch.cond`, flexible attention): the operators that they call are
        recorded instead. Here torch does not decompose composite operators, and computes sizes from those of tensors;
        the numbers that the operator itself was given are frozen."""
        body = func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
        calls = self._calls
        outside, self._opened = self._opened, True
        given, calls.current = calls.current, calls.another(None)
        for number in given.numbers:
            if not isinstance(number, Literal):
                self._freeze(number)
        try:
            with self:
                if func is torch.ops.higher_order.cond:  # its own body refuses to run under a mode
                    chosen, *branches = args[:3]
                    return branches[0 if chosen else 1](*args[3])
                if body is None:
                    raise NotImplementedError(f"niwaki cannot look into the operator {func}")
                return body(*args, **kwargs)
        finally:
            self._opened, calls.current = outside, given

    def _calculated(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], given: Sequence[int]
    ) -> tuple[Any, bool]:
        """The result of an operator for arguments with these value numbers, and whether it is hollow."""
        affected = False
        if self.hollow is not None:
            roots = [self.values[number].root for number in given]
            affected = self.hollow.affects(func, args, roots)
            result = self.hollow.result(func, args, kwargs, affected) if self.hollow.derives(roots) else None
            if result is not None:
                return result, True
        result = self.decisions.run(self._pretence.run, func, args, kwargs)
        if self.hollow is not None and affected:
            self.hollow.check(func, result)
        return result, affected

    def _mark(
        self,
        marks: Hollow,
        hollow: bool,
        known: Traits,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Sequence[int | None],
    ) -> None:
        """Mark results and written tensors as derived from weights or inputs, and hollow if they are."""
        written = [self.number_of(tensor) for tensor in known.written(args, kwargs)] if known.writes else []
        for number in (*outputs, *written):
            if number is not None:
                marks.derive(self.values[number].root)
                if hollow:
                    marks.mark(self.values[number].root)

    def _reference(self, argument: Any, given: list[int]) -> Any:
        """An argument as a node stores it; the values in it are appended to ``given``."""
        kind = type(argument)
        if kind in _PLAIN:
            return argument
        if isinstance(argument, torch.Tensor):
            number = self.number_of(argument)
            given.append(number)
            constant = self.values[number].origin is Origin.CONSTANT
            if constant and number not in self.contents and argument.numel() <= _SMALL and not is_fake(argument):
                self.contents[number] = argument.detach().clone()
            return self._refs[number]
        if isinstance(argument, (list, tuple)):
            return tuple([self._reference(item, given) for item in argument])
        return argument

    def _result(self, item: Any, root: int | None) -> int | None:
        if not isinstance(item, torch.Tensor):
            return None
        if item.is_nested:
            raise NotImplementedError(
                "a nested tensor is made, whose rows have sizes of their own; niwaki follows padded ones only"
            )
        known = self._known.get(id(item))
        if known is not None and known() is item:
            before = self.values[known.number]
            if before.shape == tuple(item.shape):
                return known.number
            root = before.root  # changed in place (`transpose_`): from now on it is another view of the same memory
        return self._add(item, Origin.COMPUTED, "", root)

    def _remember_written(self, known: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy a tensor that existed before the run, before an operator writes its memory under any name."""
        for tensor in known.written(args, kwargs):
            root = self.values[self.number_of(tensor)].root
            self.tangled |= root in self._dropped
            self._writes.expect(tensor)
            if self.values[root].origin is Origin.CONSTANT:
                self._writes.expect_foreign(tensor)

    def repeat(self, decided: Sequence[Decision]) -> None:
        """Let the next run take these decisions."""
        self.decisions = Decisions(self._module, decided)

    def _module(self) -> str:
        return self._lines.here().module

    def _freeze(self, expression: Expression) -> int:
        self._frozen.append(Frozen(expression, self._lines.here()))
        return len(self._frozen) - 1
