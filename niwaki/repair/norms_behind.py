"""The BatchNorms that take up a shift of a layer's output: those which alone read it, and read nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from niwaki.core.names import named_modules
from niwaki.repair.positions import Convolved


class NormsBehind(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches passes of a network in eval mode; `found` gives the norm behind each of the ``layers`` (by name).

    A shift of a layer's output and the same shift of a norm's running mean undo one another exactly if every output of
    the layer goes into one operator, which has this running mean, no other operator has it, and the network does not
    return the output.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers = layers
        self._norms = {name: module for name, module in named_modules(model) if _keeps_a_mean(module)}
        self._of_mean = {_memory(norm.get_buffer("running_mean")): name for name, norm in self._norms.items()}
        self._outputs: dict[int | None, tuple[str, Tensor]] = {}  # by their memory, held so that it stays theirs
        self._read: dict[str, list[str | None]] = {}  # the norm of each operator that reads an output of a layer
        self._calls: Counter[str] = Counter()  # of the layers
        self._used: Counter[str] = Counter()  # of the norms

    def note(self, layer: str, output: Tensor) -> None:
        """A call of ``layer`` gave ``output``."""
        self._calls[layer] += 1
        self._outputs[_memory(output)] = layer, output

    def returned(self, result: Any) -> None:
        """The network returned ``result``: who called it reads the outputs of layers in it."""
        for memory in {_memory(value) for value in tree_leaves(result) if isinstance(value, Tensor)}:
            if memory in self._outputs:
                self._read.setdefault(self._outputs[memory][0], []).append(None)

    def forget(self) -> None:
        """A pass is over: nothing reads its outputs any more."""
        self._outputs.clear()

    def found(self) -> dict[str, str]:
        """The name of the norm behind each layer that has one."""
        behind = {}
        for layer, norms in self._read.items():
            norm = norms[0]
            if norm is not None and norms == [norm] * self._calls[layer] and self._used[norm] == self._calls[layer]:
                behind[layer] = norm
        return behind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        memories = [_memory(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        norms = [self._of_mean[memory] for memory in memories if memory in self._of_mean]
        self._used.update(norms)
        for layer, output in (self._outputs[memory] for memory in memories if memory in self._outputs):
            fits = len(norms) == 1 and self._channel_of_norm(layer, output, norms[0])
            self._read.setdefault(layer, []).append(norms[0] if fits else None)
        return func(*args, **(kwargs or {}))

    def _channel_of_norm(self, layer: str, output: Tensor, norm: str) -> bool:
        """Whether the norm's channels are those of the layer: dimension 1 of a batch."""
        one = self._layers[layer]
        batched = one.weight.ndim if isinstance(one, Convolved) else 2
        return output.ndim == batched and output.shape[1] == self._norms[norm].get_buffer("running_mean").numel()


def _keeps_a_mean(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _memory(tensor: Tensor) -> int | None:
    try:
        address: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have no storage of their own
        return None
    return address
