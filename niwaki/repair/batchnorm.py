"""Re-estimate the BatchNorm statistics of a changed network from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.core.names import named_modules
from niwaki.errors import MethodError
from niwaki.repair.calibration import Forward, feed
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved


class _Moments:
    """Mean and variance of every channel over all entries seen, merged exactly (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0  # sum of squared distances from the mean

    def add(self, x: Tensor) -> None:
        """Add the entries of ``x`` [B, C, ...]."""
        entries = x.detach().transpose(0, 1).flatten(1)
        entries = entries if entries.dtype == torch.float64 else entries.float()
        count = entries.shape[1]
        variance, mean = (moment.cpu().double() for moment in torch.var_mean(entries, 1, correction=0))
        away, total = mean - self.mean, self.count + count
        self.mean = self.mean + away * (count / total)
        self.squares = self.squares + variance * count + away**2 * (self.count * count / total)
        self.count = total


@eagerly()
def reestimate_norms(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> tuple[str, ...]:
    """Replace the running statistics of every BatchNorm by those of the data, in place.

    After a cut of units that still mattered, the inputs of a norm have another mean and variance than its statistics.
    The model runs in eval mode (no dropout), except its norms, which normalise each batch by its own statistics, as in
    training. Mean and unbiased variance are those of all entries of all batches together, whatever their sizes: exact,
    and not a moving average. Nothing else is changed, momentum and counters included; if anything fails, nothing is.

    Args:
        model: any network, such as `niwaki.cut` returns.
        batches: inputs; a tensor or tuple is passed by position, a dict by keywords.
        forward: how to run the model on a batch where that is not so: ``lambda model, batch: model(batch[0])``.

    Returns: The names of the norms with new statistics; norms that no batch reached keep their statistics.

    Raises:
        MethodError: there are no batches, or a norm saw one value per channel only, which has no variance.
        TraceError: the model does not run on a batch.

    Example:
        >>> import torch, niwaki
        >>> net, x = torch.nn.Sequential(torch.nn.BatchNorm1d(3)), torch.randn(100, 3)
        >>> niwaki.reestimate_norms(net, x.split(30))
        ('0',)
        >>> torch.allclose(net[0].running_mean, x.mean(0), atol=1e-6)
        True
    """
    norms = {name: module for name, module in named_modules(model) if _remembers(module)}
    seen = {name: _Moments() for name in norms}
    with preserved(model):
        for module in model.modules():
            module.training = isinstance(module, _BatchNorm)
        handles = [norm.register_forward_pre_hook(_noter(seen[name])) for name, norm in norms.items()]
        try:
            feed(model, batches, forward)
        finally:
            for handle in handles:
                handle.remove()
    for name, moments in seen.items():
        if moments.count == 1:
            raise MethodError(
                f"The norm {name!r} saw one value per channel, which has no variance. Pass larger batches, or more."
            )
    reached = tuple(name for name, moments in seen.items() if moments.count)
    with torch.no_grad():
        for name in reached:
            norm, moments = norms[name], seen[name]
            assert isinstance(moments.mean, Tensor) and isinstance(moments.squares, Tensor)
            norm.get_buffer("running_mean").copy_(moments.mean)
            norm.get_buffer("running_var").copy_(moments.squares / (moments.count - 1))
    return reached


def _remembers(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _noter(moments: _Moments) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        moments.add(args[0])

    return note
