"""What passes that stand still hold in memory, and the file in which the rest of it waits."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_LEAST = 2**14  # bytes of a tensor that is worth a place in the file
_PIECE = 2**20  # bytes that are copied at once
_LOG = logging.getLogger("niwaki")


class Made(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the memory that operators take for their results: ``bytes`` in all, and, as long as it is held, where."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._store = store
        self._found: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = set()
        for storage in _storages((args, kwargs)):
            known.add(storage._cdata)
            if self._store is not None:
                self._store.bring_back(storage)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in known and storage.nbytes() >= _LEAST and storage._cdata not in self._found:
                self.bytes += storage.nbytes()
                self._found[storage._cdata] = _reference(storage)
        return result

    def held(self) -> Iterator[torch.UntypedStorage]:
        """Those that are still there."""
        for address, reference in list(self._found.items()):
            storage = _still_there(reference)
            if storage is None:
                del self._found[address]
            else:
                yield storage


class Store:
    """Up to ``limit`` bytes of what passes hold stay in memory while these stand still. The rest waits in a temporary
    file, or, of other devices than the CPU, in the memory of the host.

    A tensor that another pass made and keeps for all, in a global variable, say, comes back where it is used.
    What has no bytes of its own, and what numpy or another process sees, stays as it is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._away: dict[int, _Away] = {}  # by the address of the storage
        self._file: IO[bytes] | None = None
        self._free: dict[int, list[int]] = {}  # places in the file, by their sizes
        self._end, self._full = 0, False
        self._freed = 0  # bytes that were put away since the system got its memory back
        self.moved = 0  # bytes that were put away, in all

    def put_away(self, made: Made) -> int:
        """A pass stands still: put away what it holds, unless there is room. The room that it takes."""
        storages = list(made.held())
        need = sum(storage.nbytes() for storage in storages)
        if need <= self._left or self._full:
            self._left -= need
            return need
        for storage in storages:
            if _movable(storage):
                self._put(storage)
        if 2 * self._freed > self._limit:
            _give_back()
            self._freed = 0
        return 0

    def go_on(self, made: Made, room: int) -> None:
        """A pass goes on, which took ``room``: bring back what it holds."""
        self._left += room
        for storage in made.held():
            self.bring_back(storage)

    def bring_back(self, storage: torch.UntypedStorage) -> None:
        """Give a storage its bytes, if they were put away."""
        away = self._away.pop(storage._cdata, None)
        if away is None:
            return
        storage.resize_(away.size)
        into = _bytes_of(storage)
        if away.copy is not None:
            into.copy_(away.copy)
            return
        assert self._file is not None
        self._file.seek(away.place)
        for piece in torch.split(into, _PIECE):
            piece.copy_(torch.frombuffer(bytearray(self._file.read(len(piece))), dtype=torch.uint8))
        self._free.setdefault(away.size, []).append(away.place)

    def close(self) -> None:
        """All passes are over: bring back what somebody else keeps of them, and delete the file."""
        for away in list(self._away.values()):
            storage = _still_there(away.storage)
            if storage is not None:
                self.bring_back(storage)
        self._away.clear()
        if self._file is not None:
            self._file.close()

    def _put(self, storage: torch.UntypedStorage) -> None:
        size, whole = storage.nbytes(), _bytes_of(storage)
        if storage.device.type != "cpu":
            self._away[storage._cdata] = _Away(size, _reference(storage), copy=whole.cpu())
        else:
            free = self._free.get(size)
            place = free.pop() if free else self._end
            try:
                self._file = self._file or tempfile.TemporaryFile(buffering=0)
                self._file.seek(place)
                for piece in torch.split(whole, _PIECE):
                    _write(self._file, piece)
            except OSError as cause:
                _LOG.warning("What waits stays in memory, since the temporary file has no room for it: %s", cause)
                self._full = True
                return
            self._end = max(self._end, place + size)
            self._away[storage._cdata] = _Away(size, _reference(storage), place)
        self.moved, self._freed = self.moved + size, self._freed + size
        storage.resize_(0)


@dataclass(frozen=True, slots=True, eq=False)
class _Away:
    """Where the bytes of a ``storage`` are: in a ``copy``, or at a ``place`` of the file."""

    size: int
    storage: StorageWeakRef
    place: int = 0
    copy: Tensor | None = None


def _movable(storage: torch.UntypedStorage) -> bool:
    """Whether its bytes are its own. Tensors that wrap others have none; arrays of numpy and other processes look at
    those that cannot be resized or are shared; and torch cannot resize storages of every device."""
    if storage.device.type not in ("cpu", "cuda") or not storage.nbytes() or not storage.resizable():
        return False
    if storage.device.type == "cpu" and storage.is_shared():
        return False
    try:
        return storage.data_ptr() != 0
    except RuntimeError:  # of a tensor that wraps others
        return False


def _give_back() -> None:
    """Let the C library return to the system what is free: it keeps heaps for each thread, which fill with holes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # libraries other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _write(file: IO[bytes], piece: Tensor) -> None:
    left = memoryview(piece.clone().numpy().tobytes())
    while left:
        left = left[file.write(left) :]


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """A tensor of all bytes of a storage."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _reference(storage: torch.UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _still_there(reference: StorageWeakRef) -> torch.UntypedStorage | None:
    found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    return found


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # sparse tensors have no storage of their own
                yield value.untyped_storage()
