"""Update the configuration of a cut network, or make its own ``save_pretrained`` raise the reason why that fails."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from niwaki.core.integrations import Multiple
from niwaki.core.names import named_modules, named_parameters
from niwaki.core.plan import Plan, touched_tensors
from niwaki.errors import FileFormatError
from niwaki.huggingface.configuration import built_from, described, family_of, head_of
from niwaki.huggingface.experts import count_experts_anew, with_fewer_experts
from niwaki.huggingface.families import FAMILIES, Family
from niwaki.huggingface.layers import Stack, count_anew, shortened
from niwaki.surgery.history import plan_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAVING = "save_pretrained"


class TransformersIntegration:
    """Support for the models of transformers in searching and cutting."""

    def multiples(self, model: torch.nn.Module) -> Sequence[Multiple]:
        """The hidden size is a multiple of the number of heads, if the configuration checks that."""
        found: list[Multiple] = []
        for path, inner in pretrained_in(model):
            family = FAMILIES.get(inner.config.model_type)
            if family is not None:
                found += _multiples(f"{path}." if path else "", inner, family)
        return found

    def looked_after(self, model: torch.nn.Module) -> Sequence[object]:
        """Configurations."""
        inside = (module.__dict__ for _, inner in pretrained_in(model) for module in inner.modules())
        return [own[name] for own in inside for name in ("config", "generation_config") if name in own]

    @contextlib.contextmanager
    def with_fewer_layers(
        self, model: torch.nn.Module, deleted: Mapping[str, tuple[int, Sequence[int]]]
    ) -> Iterator[None]:
        """Numbers and lists of configurations that count layers."""
        held = [
            (module.__dict__, module.__dict__["config"]) for module in model.modules() if "config" in module.__dict__
        ]
        try:
            for path, inner in pretrained_in(model):
                prefix = f"{path}." if path else ""
                stacks = [
                    Stack(where.removeprefix(prefix), before, tuple(gone))
                    for where, (before, gone) in deleted.items()
                    if where.startswith(prefix)
                ]
                if stacks:
                    count_anew(inner, stacks)
            yield
        finally:
            for own, config in held:
                own["config"] = config

    def after_cut(self, small: torch.nn.Module, plan: Plan) -> None:
        """Give the models of transformers in ``small`` configurations with their new sizes, or another
        ``save_pretrained``."""
        touched, done = touched_tensors(plan), plan_of(small)
        for path, model in pretrained_in(small):
            prefix = f"{path}." if path else ""
            if not any(name.startswith(prefix) for name in touched):
                continue
            stacks = shortened(plan, done, prefix)
            if stacks:
                count_anew(model, stacks)
            count_experts_anew(model, with_fewer_experts(plan, done, prefix))
            within = [module for module in model.modules() if is_pretrained(module)]
            try:
                follow(model)
            except FileFormatError:
                for module in within:
                    module.__dict__[_SAVING] = Saving(module)
            else:
                for module in within:
                    module.__dict__.pop(_SAVING, None)


class Saving:
    """The ``save_pretrained`` of a network whose configuration may have other sizes. It belongs to its network, and a
    copy of it to the copy of the network."""

    __slots__ = ("__weakref__", "_model")

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = weakref.ref(model)  # the model holds this object: without a cycle, it is freed at once

    def __call__(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as the class does, with the right configuration, or refuse."""
        model: Any = self._model()
        try:
            if not model.__dict__.get("_hf_peft_config_loaded", False):  # otherwise only adapters are written
                follow(model)
        except FileFormatError as why:
            if "state_dict" not in kwargs:
                raise
            # Trainers pass the weights, if only as None, for their own checkpoints, which are loaded into the existing
            # network: a refusal would end the training.
            warnings.warn(f"from_pretrained will not load what is written to {save_directory!r}. {why}", stacklevel=2)
        return type(model).save_pretrained(model, save_directory, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Saving:
        model: Any = self._model()
        return Saving(memo.get(id(model), model))

    def __reduce__(self) -> Any:
        return Saving, (self._model(),)


def pretrained_in(model: torch.nn.Module) -> Iterator[tuple[str, PreTrainedModel]]:
    """The models of transformers in ``model``, not those inside of others; empty if transformers was not imported."""
    outer: list[str] = []
    for path, module in named_modules(model):
        if is_pretrained(module) and not any(not other or path.startswith(f"{other}.") for other in outer):
            outer.append(path)
            yield path, module


def is_pretrained(module: torch.nn.Module) -> TypeGuard[PreTrainedModel]:
    """Whether a module is a model of transformers. This does not import transformers."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(module, modeling.PreTrainedModel)


def follow(model: PreTrainedModel) -> None:
    """Give ``model``, and the modules in it that share its configuration, a configuration with the new sizes.

    Raises:
        FileFormatError: no configuration has these sizes; nothing is changed then.
    """
    family = family_of(model)
    config, state = described(model, family)
    if family.epsilon is not None:
        epsilon = getattr(config, family.epsilon)
        for name, module in named_modules(model):
            own = module.__dict__.get("variance_epsilon", epsilon)
            if not math.isclose(own, epsilon, rel_tol=1e-6):
                raise FileFormatError(
                    f"The configuration has one {family.epsilon} for all norms, here {epsilon:g}, and {name!r} has "
                    f"{own:g}. niwaki.huggingface.save_pretrained(small, directory) scales the projection in front of "
                    "it, and saves the same function."
                )
    with torch.random.fork_rng(devices=[]):
        built_from(model, config, state)
    old = model.config
    for module in model.modules():
        if module.__dict__.get("config") is old:
            module.__dict__["config"] = config


def _multiples(prefix: str, model: PreTrainedModel, family: Family) -> Iterator[Multiple]:
    sizes = {size.name: size for size in family.sizes}
    names = [name for name, _ in named_parameters(model)]
    head = head_of(model, family) or 1
    for whole, part in family.multiples:
        found = [next((n for n in names if re.fullmatch(sizes[one].tensor, n)), None) for one in (whole, part)]
        if None not in found and _checks(model.config, whole):
            yield Multiple(
                f"{prefix}{found[0]}",
                sizes[whole].dim,
                f"{prefix}{found[1]}",
                sizes[part].dim,
                head if sizes[part].heads else 1,
                f"{whole}, which the configuration requires to be a multiple of {part},",
            )


def _checks(config: Any, name: str) -> bool:
    """Whether a configuration refuses another value of a number."""
    data = config.to_dict()
    with contextlib.suppress(Exception):  # a configuration may raise any error
        type(config).from_dict({**data, name: data[name] + 1})
        return False
    return True
