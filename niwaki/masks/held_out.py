"""Batches that are held out of the training, one after the other, again and again, and the same after a resume."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import numpy as np
import torch

from niwaki.errors import MethodError

_AGAIN = (
    "Pass what can be iterated again and again, such as a DataLoader of a part of the training set that is held out "
    "of the training, or a list of its batches."
)


@final
class HeldOut:
    """Walks through ``batches`` and begins anew at their end. How a loader shuffles and augments depends on ``seed``
    and on how many batches were taken, not on the random generators: call `next` where these are preserved.

    Raises:
        MethodError: they cannot be iterated, or only once.
    """

    def __init__(self, batches: Iterable[Any], seed: int) -> None:
        try:
            once = iter(batches) is batches
        except TypeError as cause:
            raise MethodError(f"batches={batches!r} cannot be iterated: {cause}. {_AGAIN}") from cause
        if once:
            raise MethodError(
                f"batches is a {type(batches).__qualname__}, which is at its end after one pass and cannot begin anew "
                f"when a run is resumed. {_AGAIN}"
            )
        self._batches, self._seed = batches, seed
        self.passes, self.place = 0, 0  # complete passes, and the batches taken since
        self._open: Iterator[Any] | None = None

    def next(self) -> Any:
        """The next batch.

        Raises:
            MethodError: there is none.
        """
        if self._open is None:
            self._open = self._from(self.place)
        try:
            batch = self._draw(self._open, self.place)
        except StopIteration:
            self.passes, self.place = self.passes + 1, 0
            self._open = self._from(0)
            try:
                batch = self._draw(self._open, 0)
            except StopIteration:
                raise MethodError(f"batches gave no batch in pass {self.passes + 1}. {_AGAIN}") from None
        self.place += 1
        return batch

    def move(self, passes: int, place: int) -> None:
        """Go on as if so many had been taken."""
        self.passes, self.place, self._open = passes, place, None

    def _from(self, place: int) -> Iterator[Any]:
        """The batches of this pass from number ``place`` on."""
        self._chance(0)
        opened = iter(self._batches)
        for before in range(place):
            self._draw(opened, before)
        return opened

    def _draw(self, opened: Iterator[Any], place: int) -> Any:
        self._chance(place)
        return next(opened)

    def _chance(self, place: int) -> None:
        number = (self._seed * 1_000_003 + self.passes * 10_007 + place) % 2**32
        torch.default_generator.manual_seed(
            number
        )  # torch.manual_seed formats the stack where CUDA has not begun: 2 ms
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(number)
        random.seed(number)
        np.random.seed(number)

    def state(self) -> dict[str, Any]:
        """Where it is, as plain numbers."""
        return {"passes": self.passes, "place": self.place}

    @staticmethod
    def check_state(state: Mapping[str, Any]) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` unless these are two numbers of batches."""
        if int(state["passes"]) < 0 or int(state["place"]) < 0:
            raise ValueError("the number of batches that were taken is negative")
