"""One eager run of a model, recorded operator by operator below autograd."""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from os import sep
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.core.location import Location, running_at
from niwaki.core.numbers import Expression
from niwaki.errors import TraceError
from niwaki.trace.attributes import Tracking
from niwaki.trace.calls import CallMode
from niwaki.trace.decisions import Decision, Decisions
from niwaki.trace.graph import Frozen, Graph, Node, Origin, Ref, Run, Value
from niwaki.trace.hollow import Hollow
from niwaki.trace.numbers import current_trace, frozen_sink
from niwaki.trace.operators import traits
from niwaki.trace.preserve import Snapshot, preserved, restored
from niwaki.trace.pretend import NeedsValue, Pretence, is_fake, needs_value
from niwaki.trace.structures import map_tensors, objects_in, tensors_in

ExampleCall = tuple[tuple[Any, ...], dict[str, Any]]

_SMALL = 2**16  # constants of up to so many entries are kept, to be compared after a cut
# Operators of some devices only; elsewhere torch runs the operators they are composed of, and so do runs that are
# recorded: what a cut repairs lies inside.
COMPOSED = {torch.ops.aten._fused_rms_norm.default}
_ENGINE = Path(__file__).parent.parent
_INTERNAL = tuple(str(path) for path in (Path(torch.__file__).parent, _ENGINE / "trace", _ENGINE / "search.py"))
_EINOPS = f"{sep}einops{sep}"  # to a user's code operators like those of torch


def example_calls(example_inputs: Any) -> tuple[ExampleCall, ...]:
    """Example inputs as (positional, keyword) pairs: a tensor or tuple is positional, a dict keywords, a list of
    these several calls."""
    if isinstance(example_inputs, list):
        if not example_inputs:
            raise TraceError("The list of example inputs is empty. Give at least one call that the model accepts.")
        return tuple(call for item in example_inputs for call in example_calls(item))
    if isinstance(example_inputs, Mapping):
        return (((), dict(example_inputs)),)
    if isinstance(example_inputs, tuple):
        return ((example_inputs, {}),)
    return (((example_inputs,), {}),)


def trace(
    model: torch.nn.Module,
    calls: Sequence[ExampleCall],
    modes: Sequence[bool] = (False, True),
    required: bool = False,
    decided: Sequence[Decision] = (),
    arithmetic: bool = False,
) -> Graph:
    """Run ``model`` on every call in every mode (False: eval, True: train) and record what happens.

    ``decided``: what the data of another run decided; the first run decides the same and takes the same path.
    ``arithmetic``: compute all numbers, though only those that decide something have to be (`hollow`).

    The model is left as it was. A run in train mode that fails is recorded with its error, unless it is ``required``;
    one in eval mode raises.

    Raises:
        TraceError: the model does not run in eval mode with these inputs.
    """
    left_alone: frozenset[int] = frozenset()
    while True:
        pretence = Pretence(model, list(tensors_in(list(calls))))
        hollow = None if pretence.active or decided or arithmetic else Hollow()
        with preserved(model), torch.inference_mode(False):
            pretence.swap(model)
            recorder = _Recorder(model, pretence, hollow)
            recorder.decisions = Decisions(decided)
            try:
                runs, unfit = _runs(recorder, model, calls, modes, required, left_alone)
            except _NeedsArithmetic:
                arithmetic = True
                continue
        if not unfit:
            return Graph(tuple(recorder.values), tuple(runs), recorder.contents, tuple(sorted(recorder.overlooked)))
        left_alone |= unfit


def _runs(
    recorder: _Recorder,
    model: torch.nn.Module,
    calls: Sequence[ExampleCall],
    modes: Sequence[bool],
    required: bool,
    left_alone: frozenset[int],
) -> tuple[list[Run], frozenset[int]]:
    """The runs, each of the model as it is given, or the objects among the attributes that have to be left alone in
    another attempt."""
    runs: list[Run] = []
    with _current(recorder):
        tracking = Tracking(model, left_alone)
        snapshot = Snapshot(model)
        for training, call in itertools.product(modes, calls):
            with restored(snapshot):
                for module in model.modules():
                    module.training = training
                run = recorder.run(model, call, training)
                if recorder.hollow is not None and (run.error is not None or recorder.hollow.looked):
                    raise _NeedsArithmetic
                needs = isinstance(run.error, NeedsValue)
                unfit = tracking.unfit(failed=run.error is not None and not (training or required or needs))
            if unfit:
                return runs, unfit
            if run.error is not None and (not training or required):
                number = len(run.nodes) if run.inside else max(len(run.nodes) - 1, 0)
                if needs:
                    raise TraceError(f"The model cannot be analysed on the meta device: {run.error}", number)
                raise TraceError(
                    f"The model does not run on the example inputs: {type(run.error).__qualname__}: {run.error}. "
                    "niwaki runs it once as model(*inputs) in eval mode; pass inputs that it accepts "
                    "(a tensor or tuple for positional arguments, a dict for keywords).",
                    operator=number,
                ) from run.error
            runs.append(run)
    return runs, frozenset()


@contextmanager
def _current(recorder: _Recorder) -> Iterator[None]:
    token = current_trace.set(recorder)
    try:
        yield
    finally:
        current_trace.reset(token)


class _NeedsArithmetic(Exception):
    """A run without its arithmetic failed, or looked for what was not computed."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers tensors by identity and notes each operator call."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from wrapping every operator call below in its compiler's switch."""
        return False

    def __init__(self, model: torch.nn.Module, pretence: Pretence, hollow: Hollow | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pretence = pretence
        self.hollow = hollow
        self.values: list[Value] = []
        self.contents: dict[int, torch.Tensor] = {}
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._nodes: list[Node] = []
        self._frozen: list[Frozen] = []
        self._inside = False
        self.decisions = Decisions()
        self._outermost: FrameType | None = None
        self._running: torch.nn.Module | None = None
        self.overlooked: set[str] = set()
        self._calls = CallMode(self)
        self._modules = [""]
        self._names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._owners: dict[object, torch.nn.Parameter] = {}  # by memory; those not yet copied in this run
        self._parameters: list[torch.nn.Parameter] = []
        self._undo: list[tuple[torch.Tensor, torch.Tensor]] = []
        for name, parameter in model.named_parameters():
            self._add(parameter, Origin.PARAMETER, name)
            self._parameters.append(parameter)
        for name, buffer in model.named_buffers():
            self._add(buffer, Origin.BUFFER, name)

    def run(self, model: torch.nn.Module, call: ExampleCall, training: bool) -> Run:
        """Record one forward pass."""
        self._nodes, self._frozen, self._inside = [], [], False
        self._outermost, self._running = sys._getframe(), model
        self._owners = {_memory(parameter): parameter for parameter in self._parameters}
        error: Exception | None = None
        outputs: tuple[int, ...] = ()
        args, kwargs = map_tensors(call, lambda tensor: self._pretence.stand_in(tensor).detach().clone())
        for tensor in tensors_in((args, kwargs)):
            self._add(tensor, Origin.INPUT, "model input")
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(self._watching_modules())
                token = frozen_sink.set(self._freeze)
                stack.callback(frozen_sink.reset, token)
                stack.enter_context(self)
                stack.enter_context(self._calls)
                result = model(*args, **kwargs)
            outputs = tuple(self.number_of(tensor) for tensor in tensors_in(result))
            if not outputs:
                raise TypeError(f"it returned no tensor that niwaki can find, but {type(result).__qualname__}")
            self.overlooked.update(objects_in(result))
        except Exception as cause:  # noqa: BLE001 - any error of the user's code is reported, with the run recorded so far
            error = cause
        for tensor, content in self._undo:
            with torch.no_grad():
                tensor.copy_(content)
        self._undo.clear()
        decisions, self.decisions = tuple(self.decisions.made), Decisions()
        return Run(tuple(self._nodes), outputs, tuple(self._frozen), training, error, self._inside, decisions)

    def number_of(self, tensor: torch.Tensor) -> int:
        """The value number of a tensor; one never seen before is a constant."""
        tensor = self._pretence.stand_in(tensor)
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return self._add(tensor, Origin.CONSTANT, "")

    def reads(self, function: Callable[..., Any], tensor: torch.Tensor) -> None:
        if self.hollow is not None:
            self.hollow.refuse_reading(function, self.values[self.number_of(tensor)].root)

    def _add(self, tensor: torch.Tensor, origin: Origin, name: str, root: int | None = None) -> int:
        number = len(self.values)
        shape = tuple(map(int, tensor.shape))
        self.values.append(Value(number, shape, tensor.dtype, origin, name, number if root is None else root))
        self._known[id(tensor)] = (weakref.ref(tensor), number)
        return number

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "prim":  # a fake tensor is asked for its device or layout
            return func(*args, **(kwargs or {}))
        if func in COMPOSED:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        if self._pretence.active:
            args, kwargs = self._pretence.arguments(args), self._pretence.arguments(kwargs)
        arguments = tuple(self._reference(argument) for argument in args)
        named = {name: self._reference(argument) for name, argument in kwargs.items()}
        known = traits(func)
        if known.writes:
            self._remember_written(func, args, kwargs)
        self._inside = True
        try:
            result, hollow = self._calculated(func, args, kwargs, (*arguments, *named.values()))
        except Exception as error:
            raise (needs_value(error, func, self._here()) or error) from error
        self._inside = False
        results = result if isinstance(result, (tuple, list)) else (result,)
        first = next((a.value for a in arguments if isinstance(a, Ref)), None) if known.viewing else None
        root = None if first is None else self.values[first].root
        outputs = tuple(self._result(item, root) for item in results)
        self._nodes.append(Node(func, arguments, named, outputs, self._here(), self._calls.current))
        if hollow:
            self._mark_hollow(func, args, kwargs, outputs)
        return result

    def _calculated(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], references: Sequence[Any]
    ) -> tuple[Any, bool]:
        """What an operator gives, and whether that is hollow."""
        affected = False
        if self.hollow is not None:
            affected = self.hollow.affects(func, args, (self.values[n].root for n in _numbers_in(references)))
            result = self.hollow.result(func, args, kwargs, affected)
            if result is not None:
                return result, True
        result = self.decisions.run(self._pretence.run, func, args, kwargs)
        if self.hollow is not None and affected:
            self.hollow.check(func, result)
        return result, affected

    def _mark_hollow(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Sequence[int | None]
    ) -> None:
        assert self.hollow is not None
        written = [self.number_of(tensor) for tensor in traits(func).written(args, kwargs)]
        for number in (*outputs, *written):
            if number is not None:
                self.hollow.mark(self.values[number].root)

    def _reference(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            number = self.number_of(argument)
            constant = self.values[number].origin is Origin.CONSTANT
            if constant and number not in self.contents and argument.numel() <= _SMALL and not is_fake(argument):
                self.contents[number] = argument.detach().clone()
            return Ref(number)
        if isinstance(argument, (list, tuple)):
            return tuple(self._reference(item) for item in argument)
        return argument

    def _result(self, item: Any, root: int | None) -> int | None:
        if not isinstance(item, torch.Tensor):
            return None
        known = self._known.get(id(item))
        if known is not None and known[0]() is item:
            before = self.values[known[1]]
            if before.shape == tuple(item.shape):
                return known[1]
            root = before.root  # arranged in place (`transpose_`): from now on it is another view of the same memory
        return self._add(item, Origin.COMPUTED, "", root)

    def _remember_written(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy a parameter before an operator writes its memory, under whatever name."""
        for tensor in traits(func).written(args, kwargs):
            parameter = self._owners.pop(_memory(tensor), None)
            if parameter is not None:
                self._undo.append((parameter, parameter.detach().clone()))

    def _freeze(self, expression: Expression) -> None:
        self._frozen.append(Frozen(expression, self._here()))

    def _here(self) -> Location:
        """The innermost line that is neither torch's nor this package's machinery, up to the call of the model."""
        told = running_at.get()
        if told is not None:
            return told
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._outermost and _internal(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None or frame is self._outermost:
            return Location(type(self._running).__qualname__, 0, self._modules[-1])
        return Location(frame.f_code.co_filename, frame.f_lineno, self._modules[-1])

    @contextmanager
    def _watching_modules(self) -> Iterator[None]:
        def enter(module: torch.nn.Module, _: Any) -> None:
            self._modules.append(self._names.get(id(module), self._modules[-1]))

        def leave(module: torch.nn.Module, _: Any, __: Any) -> None:
            if len(self._modules) > 1:
                self._modules.pop()

        handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            del self._modules[1:]


def _numbers_in(references: Sequence[Any]) -> Iterator[int]:
    """Value numbers among the arguments of a node."""
    for argument in references:
        if isinstance(argument, Ref):
            yield argument.value
        elif isinstance(argument, tuple):
            yield from (item.value for item in argument if isinstance(item, Ref))


def _memory(tensor: Any) -> object:
    """What identifies the memory of a tensor."""
    return tensor.untyped_storage()._cdata if isinstance(tensor, torch.Tensor) else None


@cache
def _internal(filename: str) -> bool:
    return filename.startswith(_INTERNAL) or _EINOPS in filename
