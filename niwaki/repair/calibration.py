"""The data for repairs: batches of any loader, run through the network, and further samples like the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import MethodError, TraceError
from niwaki.trace.structures import ExampleCall, map_tensors
from niwaki.trace.tracer import example_calls

Forward = Callable[[nn.Module, Any], object]  # (model, batch): runs the model on the batch


def feed(model: nn.Module, batches: Iterable[Any], forward: Forward | None, first: int = 1) -> None:
    """Run ``model`` on all ``batches``, without gradients; messages count them from ``first``.

    Raises:
        MethodError: there are no batches.
        TraceError: the model does not run on one of them.
    """
    number = 0
    with torch.no_grad():
        for number, batch in enumerate(batches, first):
            try:
                if forward is not None:
                    forward(model, batch)
                else:
                    for args, kwargs in example_calls(batch):
                        model(*args, **kwargs)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as cause:
                raise TraceError(
                    f"The model does not run on batch {number}: {type(cause).__qualname__}: {cause}. A tensor or tuple "
                    "is passed by position, a dict by keywords; where a batch holds labels too, say how to run it: "
                    "forward=lambda model, batch: model(batch[0])."
                ) from cause
    if not number:
        raise MethodError("There are no batches. Pass some inputs; a loader that is used up gives none.")


_SAMPLES = 2


_FAILURES = (RuntimeError, ValueError, IndexError, KeyError, AssertionError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Samples:
    """Calls for a network: the ``given`` ones, and ``shuffled`` ones, which its code may refuse.

    In the latter the entries of each tensor are shuffled and, where they are floating point, scaled by up to a half:
    every entry stays in the range of the example's (a token of the vocabulary, an index into a table, a positive
    number).

    >>> import torch
    >>> samples = Samples.of([((torch.tensor([3, 1, 2]),), {})])
    >>> [sorted(args[0].tolist()) for args, _ in samples.shuffled]
    [[1, 2, 3], [1, 2, 3]]
    """

    given: tuple[ExampleCall, ...]
    shuffled: tuple[ExampleCall, ...]

    @classmethod
    def of(cls, calls: Iterable[ExampleCall]) -> Samples:
        """Samples of the calls, with two shuffled ones for each."""
        given = tuple(calls)
        return cls(given, tuple(_shuffled(call, seed) for call in given for seed in range(_SAMPLES)))

    def run(self, model: nn.Module) -> Iterator[Any]:
        """The outputs of ``model`` for each call; None for a shuffled one that it refuses."""
        for args, kwargs in self.given:
            yield model(*args, **kwargs)
        for args, kwargs in self.shuffled:
            try:
                result = model(*args, **kwargs)
            except _FAILURES:
                result = None
            yield result


def _shuffled(call: ExampleCall, seed: int) -> ExampleCall:
    generator = torch.Generator().manual_seed(seed)

    def one(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        shuffled = tensor.detach().reshape(-1)[order].reshape(tensor.shape)
        if not tensor.is_floating_point():
            return shuffled
        noise = torch.rand(tensor.shape, generator=generator).to(tensor)
        return shuffled * (0.5 + noise) if bool(tensor.any()) else noise

    made: ExampleCall = map_tensors(call, one)
    return made
