"""The criterion of experts: how much each adds to the tokens that its router sends to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.edits import EraseExperts
from niwaki.core.names import named_modules
from niwaki.core.space import BoolArray, Group, SearchSpace
from niwaki.criteria.registry import criterion
from niwaki.errors import MethodError
from niwaki.per_unit.index import scored_parameters
from niwaki.per_unit.sums import UnitSums
from niwaki.trace.eager import eagerly
from niwaki.trace.structures import tensors_in


@criterion("reap", reads=("routed",))
def reap(unit: UnitSums) -> Tensor:
    """S_j = mean of g_j(x) ||f_j(x)|| over the tokens x that are routed to expert j (REAP, arXiv 2510.13999, eq. 9).

    g_j is the router's weight of the expert and f_j what the expert makes of the token. Of structures of a space made
    with ``erase=True``; other structures and units have 0, and `niwaki.choose` keeps them. The paper removes equally
    many experts of every layer, as ``search_space(..., layout="uniform")`` does; without it the budget decides.

    The product g_j f_j is measured: by how much the result of the module around router and experts changes for each
    token with the expert's weights at zero, and the router as it is. So it needs no knowledge of how the mixture is
    written; it takes one pass through that module per expert and batch.
    """
    return unit.routed


def experts_of(space: SearchSpace) -> list[Group]:
    """The groups of one unit that are experts of routers."""
    return [g for g in space.groups if g.structure is not None and space.structures[g.structure].router is not None]


def not_experts(space: SearchSpace) -> BoolArray:
    """All other units, [num_units]."""
    found = np.ones(space.num_units, dtype=bool)
    found[[group.first for group in experts_of(space)]] = False
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """The module at ``path``, with what is set to zero for each of its experts, by the number of its unit: slices
    (parameter, dimension, positions)."""

    path: str
    experts: Mapping[int, Sequence[tuple[nn.Parameter, int, Tensor]]]

    def terms(self, run: Callable[[], Any]) -> Iterator[tuple[int, Tensor]]:
        """For each expert what it adds to the result, [tokens, features].

        Raises:
            MethodError: the result is not the sum of what the experts add, and something that does not depend on them;
            or no expert adds anything.
        """
        made = _result(run(), self.path)
        whole, total = _tokens(made), None
        for unit, slices in self.experts.items():
            with _zero(slices):
                term = whole - _tokens(_result(run(), self.path))
            total = term if total is None else total + term
            yield unit, term
        if total is None:
            return
        with _zero([one for slices in self.experts.values() for one in slices]):
            rest = whole - _tokens(_result(run(), self.path))
        if whole.any() and not (total.any() or rest.any()):
            raise MethodError(
                f"The criterion 'reap' sets experts to zero, one after the other, and the result of "
                f"{self.path or 'the model'!r} did not change for any of them. Either they are zero already, or the "
                "module computes with copies of their weights: let it use the parameters themselves."
            )
        step = self._rounding(made)
        error, most = float((total - rest).norm()), step**0.5 * float(rest.norm())
        if error > most + 2 * step * float(whole.norm()):  # each of the runs rounds the whole result
            raise MethodError(
                f"The criterion 'reap' needs what each expert adds to the result of {self.path or 'the model'!r}, "
                "which has the router and its experts. But that result is not a sum over experts: something else "
                "follows in the same module. Put router and experts into a module of their own, or use another "
                "criterion, such as 'taylor1'."
            )

    def _rounding(self, made: Tensor) -> float:
        """The largest relative error of a number in what leads to the result ``made``."""
        types = {made.dtype, *(weight.dtype for slices in self.experts.values() for weight, _, _ in slices)}
        if torch.is_autocast_enabled(made.device.type):
            types.add(torch.get_autocast_dtype(made.device.type))
        return max(torch.finfo(one).eps for one in types if one.is_floating_point)


@final
class RoutedTokens:
    """Sums, over all tokens so far, of what each expert has added, where and as ``like`` [num_units] is.

    Raises:
        MethodError: the space has no experts.
    """

    def __init__(self, space: SearchSpace, like: Tensor) -> None:
        self._model = space.model
        self._mixtures = _mixtures(space)
        self._sum, self._tokens = like.new_zeros(2, space.num_units)
        self._given = like.new_zeros(space.num_units)
        self._batches = 0

    def field(self, loss: Callable[[], Tensor]) -> Tensor:
        """Run one batch. The means over all tokens so far, as what has to be added to the earlier answers so that the
        mean of all answers is the mean over tokens: batches with few tokens of an expert then count less."""
        modules = dict(named_modules(self._model))
        with eagerly(), ExitStack() as hooks:
            for mixture in self._mixtures:
                hook = modules[mixture.path].register_forward_hook(self._hook(mixture), with_kwargs=True)
                hooks.callback(hook.remove)
            loss()
        self._batches += 1
        answer: Tensor = self._batches * self._sum / self._tokens.clamp(min=1) - self._given
        self._given = self._given + answer
        return answer

    def _hook(self, mixture: Mixture) -> Callable[..., None]:
        def add(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            for unit, term in mixture.terms(lambda: module.forward(*args, **kwargs)):
                sizes = torch.linalg.vector_norm(term, dim=1)
                self._sum[unit] += sizes.sum().to(self._sum)
                self._tokens[unit] += sizes.count_nonzero().to(self._tokens)

        return add


def _mixtures(space: SearchSpace) -> list[Mixture]:
    erasures, parameters, groups = space.erasures, scored_parameters(space), experts_of(space)
    if erasures is None or not groups:
        raise MethodError(
            "The criterion 'reap' is for experts that a router chooses, of which this space has none: build it with "
            "niwaki.search_space(..., erase=True)."
        )
    found: dict[str, dict[int, list[tuple[nn.Parameter, int, Tensor]]]] = {}
    names: dict[str, set[str]] = {}
    for group in groups:
        assert group.structure is not None
        (edit,) = (one for one in erasures.edits((group.structure,)) if isinstance(one, EraseExperts))
        own = [name for name in space.structures[group.structure].parameters if name in parameters]
        slices = [(parameters[name], 0, torch.arange(len(parameters[name]))) for name in own]
        if not own:  # one tensor has the weights of all experts; vectors may be biases of the router
            held = [piece for piece in group.slices if piece.tensor in parameters and piece.tensor != edit.weight]
            held = [piece for piece in held if parameters[piece.tensor].dim() > 1]
            slices = [(parameters[one.tensor], one.dim, torch.from_numpy(one.index[0])) for one in held]
            own = [piece.tensor for piece in held]
        found.setdefault(edit.weight, {})[group.first] = slices
        names.setdefault(edit.weight, {edit.weight}).update(own)
    modules = dict(named_modules(space.model))
    return [Mixture(_around(names[weight], modules), experts) for weight, experts in found.items()]


def _around(names: set[str], modules: Mapping[str, nn.Module]) -> str:
    """The smallest module that has all of these parameters and can be called."""
    parts = [name.split(".")[:-1] for name in names]
    common = 0
    while all(len(one) > common for one in parts) and len({one[common] for one in parts}) == 1:
        common += 1
    while common and isinstance(modules[".".join(parts[0][:common])], (nn.ModuleList, nn.ModuleDict, nn.ParameterList)):
        common -= 1
    return ".".join(parts[0][:common])


def _result(result: Any, path: str) -> Tensor:
    """The first floating tensor of a result."""
    first = next((one for one in tensors_in(result) if one.is_floating_point() and one.dim()), None)
    if first is None:
        raise MethodError(f"The criterion 'reap' needs what {path or 'the model'!r} returns, which is not a tensor.")
    return first.detach()


def _tokens(made: Tensor) -> Tensor:
    """A copy of a result, [tokens, features]."""
    return made.to(torch.promote_types(made.dtype, torch.float32)).reshape(-1, made.shape[-1]).clone()


@contextmanager
def _zero(slices: Sequence[tuple[nn.Parameter, int, Tensor]]) -> Iterator[None]:
    kept = [(w.detach(), dim, at.to(w.device), w.detach().index_select(dim, at.to(w.device))) for w, dim, at in slices]
    try:
        for weight, dim, at, _ in kept:
            weight.index_fill_(dim, at, 0)
        torch.clear_autocast_cache()  # which has copies of the weights in half precision
        yield
    finally:
        for weight, dim, at, old in kept:
            weight.index_copy_(dim, at, old)
        torch.clear_autocast_cache()
