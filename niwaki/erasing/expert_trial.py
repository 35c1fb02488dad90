"""Try whether experts can be erased: take the block of each router out of a narrow copy of the network, and look at the
law (``expert_law``) there, in eval mode, and in train mode where the network runs in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.names import module_at, named_modules
from niwaki.core.plan import Plan, tensor_shapes
from niwaki.core.precision import doubled
from niwaki.erasing.expert_counts import Place
from niwaki.erasing.expert_law import law, law_around, numbers_followed, seeded, with_random_weights
from niwaki.erasing.routers import Router
from niwaki.errors import first_line
from niwaki.surgery.cut import cut_empty
from niwaki.trace.eager import eagerly
from niwaki.trace.fake import is_fake
from niwaki.trace.model_state import held
from niwaki.trace.structures import ExampleCall, map_tensors, others_in

_MORE = 2  # numbers of experts that are tried, where the first are too few


@final
class ExpertTrials:
    """Tries routers of ``model``, each kind once, and then what is around their blocks.

    Args:
        model: a network of modules.
        narrow: a plan that makes it narrow and erases nothing; None if it stays as wide as it is.
        calls: what it is called with.
        training: the modes that it runs in.
        equal: whether all routers of as many experts keep equally many.
    """

    def __init__(
        self,
        model: nn.Module,
        narrow: Plan | None,
        calls: Sequence[ExampleCall],
        training: Sequence[bool],
        equal: bool,
    ) -> None:
        self._equal = equal
        self._model, self._narrow, self._calls, self._training = model, narrow, calls, training
        self._copy: nn.Module | None = None
        self._known: dict[object, tuple[int, str | None]] = {}

    def best(self, guesses: Sequence[Router]) -> Router:
        """The first of some ``guesses`` at one router that obeys the law; if none does, the last."""
        for router in map(self.tried, guesses):
            if router.why is None:
                break
        return router

    def tried(self, router: Router) -> Router:
        """``router``, with the least number of experts that have to stay, or the reason why it cannot lose any."""
        if router.why is not None:
            return router
        kind = _kind(self._model, router)
        if kind not in self._known:
            self._known[kind] = self._outcome(router)
        least, why = self._known[kind]
        return replace(router, least=least, why=why)

    def around(self, routers: Sequence[Router]) -> list[Router]:
        """``routers``, those refused of which code outside of their blocks counts the experts."""
        fine = [router for router in routers if router.why is None]
        if self._copy is None or not fine:
            return [*routers]
        why = self._why_around(fine)
        if why is None:
            return [*routers]
        own = {id(router): self._why_around([router]) for router in fine} if len(fine) > 1 else {}
        joint = why if not any(own.values()) else None
        return [replace(one, why=one.why or own.get(id(one)) or joint) for one in routers]

    def followed(self, routers: Sequence[Router]) -> frozenset[Place]:
        """The numbers of modules that integrations update where all ``routers`` keep equally many experts."""
        if self._copy is None:
            return frozenset()
        try:
            with seeded(), eagerly():
                return numbers_followed(self._copy, routers)
        except Exception:  # noqa: BLE001 - any code of the user's may run; then nothing is known to be updated
            return frozenset()

    def _why_around(self, routers: Sequence[Router]) -> str | None:
        assert self._copy is not None
        try:
            with seeded(), eagerly():
                calls = [map_tensors(call, _valued) for call in self._calls]
                unequal = None if self._equal else law_around(self._copy, routers, calls, followed=False)
                return unequal or law_around(self._copy, routers, calls, followed=True)
        except Exception as cause:  # noqa: BLE001 - any error of the user's code is a reason
            return f"it cannot be tried: {type(cause).__qualname__}: {first_line(cause)}"

    def _outcome(self, router: Router) -> tuple[int, str | None]:
        try:
            if self._copy is None:
                self._copy = _with_values(_narrowed(self._model, self._narrow))
            with seeded(), eagerly(), torch.enable_grad():
                given = [_called_with(self._copy, router.block, call) for call in self._calls]
                calls = [call for call in given if call is not None]
                if not calls:
                    return router.least, f"no example call reaches {router.block!r}"
                block, inside = module_at(self._copy, router.block), _inside(router)
                found = None
                for least in range(router.least, min(router.least + _MORE, router.experts)):
                    found = law(block, replace(inside, least=least), calls, self._training)
                    if found is None or not found.too_few:
                        return least, None if found is None else found.why
                chosen = f"its router chooses {router.least} of {router.experts} at once"
                return router.least, chosen if found is None else found.why
        except Exception as cause:  # noqa: BLE001 - any error of the user's code is a reason
            return router.least, f"it cannot be tried: {type(cause).__qualname__}: {first_line(cause)}"


def _inside(router: Router) -> Router:
    """A router with its names as they are in its block."""
    prefix = f"{router.block}." if router.block else ""

    def name(path: str) -> str:
        return "" if path == router.block else path.removeprefix(prefix)

    return replace(
        router,
        weight=name(router.weight),
        module=name(router.module),
        block="",
        slices=tuple((name(tensor), dim) for tensor, dim in router.slices),
        lists=tuple(replace(one, path=name(one.path)) for one in router.lists),
        numbers=tuple((name(path), attribute, where) for path, attribute, where in router.numbers),
    )


def _kind(model: nn.Module, router: Router) -> object:
    """What is equal for routers of which one is enough to be tried: modules of the same classes with the same settings
    and sizes."""
    inside = _inside(router)
    block = module_at(model, router.block)
    settings = []
    for path, module in named_modules(block):
        own = tuple(
            (name, _setting(value))
            for name, value in sorted(module.__dict__.items())
            if name not in _PARTS and not (name in _INTERNALS and not value)
        )
        settings.append((path, type(module), own))
    return (
        tuple(settings),
        tensor_shapes(block),
        replace(inside, node=0, location=replace(router.location, module="")),
    )


def _setting(value: Any) -> object:
    """What is equal for equal settings: of anything but plain data its identity."""
    if type(value) is dict:
        return tuple((key, _setting(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value), tuple(map(_setting, value))
    return value if type(value) in _PLAIN else id(value)


_PLAIN = (type(None), bool, int, float, str)
_INTERNALS = frozenset(nn.Module().__dict__)
_PARTS = frozenset({"_parameters", "_buffers", "_modules"})


def _narrowed(model: nn.Module, narrow: Plan | None) -> nn.Module:
    """A copy of zeros with fewer units."""
    return cut_empty(model, Plan({}, {}, tensor_shapes(model)) if narrow is None else narrow)


def _with_values(model: nn.Module) -> nn.Module:
    """``model`` in float64, with values in place of those that its parameters and buffers may be without. In place."""

    def valued(tensor: Tensor) -> Tensor:
        if tensor.is_meta or is_fake(tensor):
            tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
        return tensor.double() if tensor.is_floating_point() else tensor

    model = model._apply(valued)  # type: ignore[no-untyped-call]
    return with_random_weights(model, np.random.default_rng(0))


def _called_with(model: nn.Module, block: str, call: ExampleCall) -> ExampleCall | None:
    """What a module inside of ``model`` is given first; None if it is not called."""
    found: list[ExampleCall] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not found:
            found.append(map_tensors((args, kwargs), lambda tensor: tensor.detach().clone()))

    handle = module_at(model, block).register_forward_pre_hook(take, with_kwargs=True)
    args, kwargs = map_tensors(call, _valued)
    with held(model, others_in(call)), torch.no_grad(), doubled():
        try:
            model.eval()(*args, **kwargs)
        finally:
            handle.remove()
    return found[0] if found else None


def _valued(tensor: Tensor) -> Tensor:
    """A copy in float64; zeros for one without values."""
    if tensor.is_meta or is_fake(tensor):
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone()
