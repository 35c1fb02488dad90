"""Forward passes that halt at the calls of some layers, so that the passes of many batches advance together."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from niwaki.core.names import module_at
from niwaki.repair.calibration import Forward, feed
from niwaki.repair.waiting import Made, Store
from niwaki.surgery.cut import duplicate

T = TypeVar("T")
Pick = Callable[[tuple[Any, ...], Mapping[str, Any], Any], tuple[Tensor, ...]]


class _Abandoned(BaseException):
    """Ends a pass that is not needed any more; no ``except Exception`` of the network's code holds it up."""


class Halting(Generic[T]):
    """The values that ``work(say)`` passes to ``say``, as an iterator: ``work`` stands still until the next is asked
    for.

    Python's generators halt only in their own function; a forward pass halts deep inside of a network's code, so it
    runs in a thread. Never do two threads run at once. `close` ends a work that is not over.

    >>> passed = Halting(lambda say: [say(number) for number in range(3)])
    >>> next(passed), list(passed)
    (0, [1, 2])
    """

    def __init__(self, work: Callable[[Callable[[T], None]], object]) -> None:
        self._work = work
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._said: SimpleQueue[Callable[[], T]] = SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run), daemon=True)
        self._over, self._abandoned = False, False
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next value; what ``work`` raises is raised here."""
        if self._over:
            raise StopIteration
        self._go.put(True)
        try:
            return self._said.get()()
        except BaseException:
            self._over = True
            raise

    def close(self) -> None:
        """End the work where it stands."""
        self._over = True
        self._go.put(False)  # also after an interruption, when the work has not come to a halt yet
        self._thread.join()

    def _run(self) -> None:
        try:
            self._wait()
            self._work(self._say)
            last: BaseException = StopIteration()
        except _Abandoned:
            return
        except BaseException as cause:  # noqa: BLE001 - it is raised again where the next value is asked for
            last = cause
        self._said.put(lambda: _raised(last))

    def _say(self, value: T) -> None:
        self._said.put(lambda: value)
        self._wait()

    def _wait(self) -> None:
        if self._abandoned or not self._go.get():
            self._abandoned = True  # a bare ``except:`` in the network's code may go on to the next halt
            raise _Abandoned


def _raised(cause: BaseException) -> Any:
    raise cause


class Pass:
    """One forward pass over one batch, which halts at each call of the ``layers`` (by name).

    It gives what the layer's `Pick` takes of the call: of its arguments and its output, if it halts ``after`` the call;
    of its arguments and None, if it halts before. The pass has a copy of the model, with the same parameters and
    buffers: what the code notes on its modules is not mixed with the notes of other passes. The caller sees to it that
    compiled code runs eagerly (`niwaki.trace.eager`): it is a setting of the whole process, and passes that set and
    reset it in turns would leave it set. While it stands still, `rest` lets a ``store`` have what it holds. ``called``:
    the modules whose calls count as those of a layer, where they are others; of layers with one module the first in
    ``layers`` comes first.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Pick],
        batch: Any,
        forward: Forward | None,
        number: int,
        after: bool,
        store: Store | None = None,
        called: Mapping[str, str] | None = None,
    ) -> None:
        shared: dict[int, object] = {id(x): x for x in (*model.parameters(), *model.buffers())}
        own = duplicate(model, shared)
        self._seen: dict[str, list[tuple[Tensor, ...]]] = {}

        surroundings = _surroundings()
        self._store, self._made = store, Made(store)
        self._room: int | None = None  # in the store, while it has what the pass holds
        if store is not None:
            surroundings.append(self._made)

        def work(say: Callable[[tuple[str, tuple[Tensor, ...]]], None]) -> None:
            with torch.no_grad(), contextlib.ExitStack() as stack:
                for context in surroundings:
                    stack.enter_context(context)
                for name, pick in reversed(list(layers.items())) if after else layers.items():
                    _watch(name, module_at(own, (called or {}).get(name, name)), pick, after, say)
                feed(own, [batch], forward, number)

        self._halting: Halting[tuple[str, tuple[Tensor, ...]]] = Halting(work)

    def take(self, name: str, count: int) -> list[tuple[Tensor, ...]]:
        """What was picked of the first ``count`` calls of a layer; the pass stands at the last of them.

        Raises:
            ValueError: the layer has fewer calls.
        """
        if self._store is not None and self._room is not None:
            self._store.go_on(self._made, self._room)
            self._room = None
        found = self._seen.pop(name, [])
        while len(found) < count:
            said = next(self._halting, None)
            if said is None:
                raise ValueError("it does not read the same positions in the cut network")
            if self._store is not None:
                for value in said[1]:  # it may be what another pass made for all
                    self._store.bring_back(value.untyped_storage())
            if said[0] == name:
                found.append(said[1])
            else:
                # The code may write to it when it goes on.
                self._seen.setdefault(said[0], []).append(tuple(value.clone() for value in said[1]))
        return found

    def rest(self) -> None:
        """The pass will stand still for a while, and nobody reads what it gave."""
        if self._store is not None and self._room is None:
            self._room = self._store.put_away(self._made)

    def close(self) -> None:
        """End the pass where it stands."""
        self._halting.close()


def _surroundings() -> list[contextlib.AbstractContextManager[object]]:
    """What torch keeps for each thread of its own, and the caller has set: autocasting and the default device."""
    kinds = sorted({"cpu", torch.get_default_device().type, *(("cuda",) if torch.cuda.is_available() else ())})
    casts = [torch.autocast(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]
    device = torch.get_default_device()
    return [*casts, *([] if device.type == "cpu" else [device])]


def _watch(
    name: str,
    layer: nn.Module,
    pick: Pick,
    after: bool,
    say: Callable[[tuple[str, tuple[Tensor, ...]]], None],
) -> None:
    if after:
        layer.register_forward_hook(
            lambda _, args, kwargs, output: say((name, pick(args, kwargs, output))), prepend=True, with_kwargs=True
        )
    else:
        layer.register_forward_pre_hook(lambda _, args, kwargs: say((name, pick(args, kwargs, None))), with_kwargs=True)


@contextmanager
def closing_all(passes: list[Pass]) -> Iterator[None]:
    """End all passes at the exit, with those that were added to the list inside."""
    try:
        yield
    finally:
        for one in passes:
            one.close()
