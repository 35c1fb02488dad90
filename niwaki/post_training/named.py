"""The methods of `niwaki.prune` that have names of their own, beside the criteria of `niwaki.score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from niwaki.criteria.losses import Loss, loss_of
from niwaki.criteria.mix import One
from niwaki.criteria.registry import criteria
from niwaki.errors import MethodError, UnknownName, nearest
from niwaki.post_training.explained import CaP
from niwaki.post_training.hessian_aware import HAP
from niwaki.post_training.own_choice import OwnChoice
from niwaki.post_training.surgeon import Surgeon

Method = One | Mapping[One, float] | OwnChoice


@dataclass(frozen=True, slots=True)
class NamedMethod:
    """How a method is made of the batches and the loss of `niwaki.prune`, and what it needs them for."""

    name: str
    make: Callable[[list[Any], Loss], One | OwnChoice]
    needs: str


def _cap(batches: list[Any], loss_fn: Loss) -> CaP:
    return CaP(batches, lambda model, batch: loss_of(loss_fn, model, batch))


SURGEON = NamedMethod("surgeon", Surgeon, "it looks at what layers read, on data")
NAMED: Mapping[str, NamedMethod] = {
    one.name: one
    for one in (
        SURGEON,
        NamedMethod("cap", _cap, "it looks at what layers read, on data"),
        NamedMethod(HAP.name, lambda batches, loss_fn: HAP(), HAP.needs),
    )
}


def method_from(method: Method, batches: list[Any] | None, loss_fn: Loss | None) -> Method:
    """``method``, or what its name means, if that is no criterion of `niwaki.score`.

    Raises:
        MethodError: there are no batches, and it needs them.
        UnknownName: neither a method nor a criterion has that name.
    """
    named = NAMED.get(method) if isinstance(method, str) else None
    if isinstance(method, str) and named is None and method not in criteria():
        raise UnknownName(
            f"There is no method {method!r}.{nearest(method, [*NAMED, *criteria()])} There are {', '.join(NAMED)} and "
            f"the criteria {', '.join(sorted(criteria()))}."
        )
    asking = method if isinstance(method, OwnChoice) else named
    if asking is None:
        return method
    if batches is None or loss_fn is None:
        raise MethodError(f"method={asking.name!r} needs batches and loss_fn: {asking.needs}.")
    return method if named is None else named.make(batches, loss_fn)
