"""Exact second derivatives, entry by entry: what estimates of the curvature are compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from niwaki.criteria.products import ExactProducts


def hessian_diagonal(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second derivative of ``loss`` by every entry of ``parameters``, of their shapes.

    A product with the Hessian per entry: for small networks.

    Raises:
        MethodError: an operator has no second derivative.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hessian_diagonal((x**3).sum() + x.prod(), {"x": x})
        {'x': tensor([ 6., 12.])}
    """
    products = ExactProducts(loss, parameters, "hessian_diagonal")
    found: dict[str, Tensor] = {}
    for name, value in parameters.items():
        diagonal = torch.zeros_like(value).flatten()
        for entry in range(len(diagonal)):
            probe = torch.zeros_like(diagonal)
            probe[entry] = 1
            diagonal[entry] = products.of({name: probe.view_as(value)})[name].flatten()[entry]
        found[name] = diagonal.view_as(value)
    return found
