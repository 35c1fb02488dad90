"""Find the configuration that has the sizes of a cut network, and build an ordinary model from it."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from niwaki.core.names import named_modules, state_of_model
from niwaki.errors import FileFormatError
from niwaki.huggingface.families import FAMILIES, Family, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def described(small: PreTrainedModel, family: Family) -> tuple[Any, dict[str, Tensor]]:
    """A configuration with the sizes of ``small``, and the tensors for a model built from it.

    Raises:
        FileFormatError: there is none.
    """
    config, state = copy.deepcopy(small.config), dict(state_of_model(small))
    head = head_of(small, family)
    if family.head is not None:
        name, attribute = family.head
        if head is None:
            raise unsaid(f"no attention module has the size of a head ({attribute!r})")
        setattr(config, name, head)
    layers: dict[int, dict[str, int]] = {}
    for size in family.sizes:
        found = _sizes(state, size, head)
        if len(set(found.values())) <= 1:
            for value in found.values():
                setattr(config, size.name, value)
            continue
        numbers = {name: re.fullmatch(size.tensor, name) for name in found}
        for name, match in numbers.items():
            if match is None or not match.groups():
                raise unsaid(_differ(size, found))
            layers.setdefault(int(match[1]), {})[size.name] = found[name]
    if layers:
        config = _by_layer(
            small, config, layers, next(s for s in family.sizes if s.name in next(iter(layers.values())))
        )
    if family.epsilon is not None:
        setattr(config, family.epsilon, _epsilon(small, family, state))
    return config, state


def head_of(model: PreTrainedModel, family: Family) -> int | None:
    """The number of positions of a head, from the attention modules."""
    if family.head is None:
        return None
    return next((m.__dict__[family.head[1]] for m in model.modules() if family.head[1] in m.__dict__), None)


def family_of(model: PreTrainedModel) -> Family:
    """The family of ``model``: the sizes that its configuration can express.

    Raises:
        FileFormatError: niwaki does not know.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise unsaid(
            f"niwaki does not know which numbers of a {kind!r} configuration follow the cut (it knows "
            f"{', '.join(sorted(FAMILIES))}; niwaki.huggingface.FAMILIES takes more)"
        )
    return FAMILIES[kind]


def _sizes(state: Mapping[str, Tensor], size: Size, head: int | None) -> dict[str, int]:
    """The configuration's number for each tensor."""
    found = {}
    for name, tensor in state.items():
        if re.fullmatch(size.tensor, name):
            found[name] = tensor.shape[size.dim]
            if size.heads and head is not None:
                if found[name] % head:
                    raise unsaid(f"{name!r} has {found[name]} rows, which is not a whole number of heads of {head}")
                found[name] //= head
    return found


def _differ(size: Size, found: Mapping[str, int]) -> str:
    first, value = next(iter(found.items()))
    other, unlike = next((name, number) for name, number in found.items() if number != value)
    return f"{size.name} would have to be {value} for {first!r} and {unlike} for {other!r}"


def _by_layer(small: PreTrainedModel, config: Any, layers: Mapping[int, Mapping[str, int]], size: Size) -> Any:
    """A configuration with ``per_layer_config``, if this version of transformers can build a model from it."""
    data = config.to_dict()
    for name in {name for numbers in layers.values() for name in numbers}:
        data[name] = max(numbers[name] for numbers in layers.values() if name in numbers)
    try:
        made = type(config)(**{**data, "per_layer_config": {layer: dict(numbers) for layer, numbers in layers.items()}})
        with torch.device("meta"):
            type(small)(made)
    except Exception as cause:
        found = {f"layer {layer}": numbers[size.name] for layer, numbers in layers.items() if size.name in numbers}
        raise unsaid(
            f"{_differ(size, found)}, and this version of transformers cannot build a {config.model_type!r} model with "
            "a per_layer_config"
        ) from cause
    return made


def _epsilon(small: PreTrainedModel, family: Family, state: dict[str, Tensor]) -> float:
    """The epsilon of all norms; projections before norms with another epsilon are scaled, in ``state``."""
    norms = {
        name: m.__dict__["variance_epsilon"] for name, m in named_modules(small) if "variance_epsilon" in m.__dict__
    }
    free = {name: value for name, value in norms.items() if name.rpartition(".")[2] in family.scaled}
    rest = {name: value for name, value in norms.items() if name not in free}
    epsilon = float(next(iter((rest or norms).values())))
    for name, value in rest.items():
        if not math.isclose(value, epsilon, rel_tol=1e-9):
            raise unsaid(
                f"{family.epsilon} would have to be {epsilon} for {next(iter(rest))!r} and {value} for {name!r}"
            )
    for name, value in free.items():
        parent, _, leaf = name.rpartition(".")
        # Scaling the input of the norm scales its mean square, and the epsilon with it.
        factor = math.sqrt(epsilon / value)
        for tensor in (f"{parent}.{family.scaled[leaf]}.{kind}" for kind in ("weight", "bias")):
            if tensor in state and factor != 1:
                state[tensor] = (state[tensor].double() * factor).to(state[tensor].dtype)
    return epsilon


def built_from(small: PreTrainedModel, config: Any, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of the configuration that has these tensors."""
    try:
        type(config).from_dict(config.to_dict())  # which checks the configuration, as loading does
        with torch.device("meta"):
            built = type(small)(config)
    except Exception as cause:
        told = " ".join(str(cause).split())
        raise unsaid(f"a model cannot be built from the configuration ({type(cause).__qualname__}: {told})") from cause
    there = state_of_model(built)
    for name in (*state, *there):
        here, instead = (list(tensors[name].shape) if name in tensors else "none" for tensors in (state, there))
        if here != instead:
            raise unsaid(f"{name!r} has the shape {here}, and a model built from the configuration has {instead}")
    modules = dict(named_modules(built))
    for path, module in named_modules(small):
        for name, value in module.__dict__.items():
            other = modules[path].__dict__.get(name)
            if type(value) is float is type(other) and not math.isclose(value, other, rel_tol=1e-6):
                if name != "variance_epsilon":  # removed by scaling, or equal
                    raise unsaid(f"{path}.{name} is {value}, and in a model built from the configuration {other}")
    built.load_state_dict(dict(state), assign=True)
    built.tie_weights()
    if small.can_generate():
        built.generation_config = copy.deepcopy(small.generation_config)
    return built


class Unsaid(FileFormatError):
    """Raised if a network cannot be expressed in a configuration; ``why``: the reason."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message, why)
        self.why = why

    def __str__(self) -> str:
        return str(self.args[0])


def unsaid(why: str) -> Unsaid:
    return Unsaid(
        f"This network cannot be expressed in a config.json: {why}. Cut with a plan of niwaki.search_space(..., "
        "layout='uniform') and keep what a configuration cannot express: print(niwaki.huggingface.can_save(space)) "
        "shows, before a training, what to pass as `ignored=`. Or use niwaki.save and niwaki.load.",
        why,
    )
