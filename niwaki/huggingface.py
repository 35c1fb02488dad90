"""Cut networks of Hugging Face transformers as ordinary checkpoints, which load without niwaki.

A configuration file says one number for all layers: build the search space with ``layout="uniform"``. What a family's
configuration cannot say at all, such as fewer heads of the same size in GPT-2 and BERT, must stay (``ignored=``), or
the network is saved by `niwaki.save` and loaded by `niwaki.load`.
"""

from __future__ import annotations

import copy
import math
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from niwaki.errors import FileFormatError
from niwaki.files import flush_directory, flush_file
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import example_calls

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Size:
    """A number of the configuration: dimension ``dim`` of the tensors whose names match, divided by the head size if it
    counts heads. A group in the pattern is the number of the layer."""

    name: str
    tensor: str
    dim: int
    heads: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """What the configuration of a family says. ``head``: its name for the head size, and the attention modules' own.
    ``epsilon``: its name for the epsilon of all norms. ``scaled``: norms that read one projection alone, by its name:
    they may have another epsilon, for the projection can be scaled instead."""

    sizes: tuple[Size, ...]
    head: tuple[str, str] | None = None
    epsilon: str | None = None
    scaled: Mapping[str, str] = field(default_factory=dict)


_LAYER = r".*\blayers\.(\d+)\..*"
_DECODER = Family(
    sizes=(
        Size("hidden_size", r".*embed_tokens\.weight", 1),
        Size("intermediate_size", _LAYER + r"\bmlp\.gate_proj\.weight", 0),
        Size("num_attention_heads", _LAYER + r"\bq_proj\.weight", 0, heads=True),
        Size("num_key_value_heads", _LAYER + r"\bk_proj\.weight", 0, heads=True),
    ),
    head=("head_dim", "head_dim"),
    epsilon="rms_norm_eps",
    scaled={"q_norm": "q_proj", "k_norm": "k_proj"},
)
_T5 = Family(
    sizes=(
        Size("d_model", r"shared\.weight", 1),
        Size("d_ff", r".*\bDenseReluDense\.wi(?:_0)?\.weight", 0),
        Size("num_heads", r".*\b(?:SelfAttention|EncDecAttention)\.q\.weight", 0, heads=True),
    ),
    head=("d_kv", "key_value_proj_dim"),
    epsilon="layer_norm_epsilon",
)
_VIT = Family(
    sizes=(
        Size("intermediate_size", _LAYER + r"\bmlp\.fc1\.weight", 0),
        Size("num_attention_heads", _LAYER + r"\bq_proj\.weight", 0, heads=True),
    ),
    head=("head_dim", "head_dim"),
)

# By `config.model_type`. A new family is one entry; what it leaves out shows when the model is built from its config.
FAMILIES: dict[str, Family] = {
    "bert": Family((Size("intermediate_size", r".*\blayer\.(\d+)\.intermediate\.dense\.weight", 0),)),
    "gpt2": Family((Size("n_inner", r".*\bh\.(\d+)\.mlp\.c_fc\.weight", 1),)),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "mt5": _T5,
    "t5": _T5,
    "vit": _VIT,
}
_CLOSE, _CLOSE_HALF = 1e-4, 3e-2  # relative to the largest value


def save_pretrained(small: PreTrainedModel, directory: str | os.PathLike[str], example_inputs: Any = None) -> None:
    """Write a cut network as ``config.json`` and ``model.safetensors``, which ``from_pretrained`` loads without niwaki.

    The configuration is worked out from the tensors, and a model built from it must have exactly these tensors and the
    same scales. The network itself is only read; a directory that is there keeps its other files.

    Args:
        small: what `niwaki.cut` returned, trained on or not.
        directory: made, with its parents, if it is not there.
        example_inputs: if given, the written files are loaded once, and must give the same outputs for them: a tensor
            or tuple is positional, a dict is keywords.

    Raises:
        FileFormatError: no configuration says this network; the message names the tensor or layer. Nothing is written.

    Example::

        space = niwaki.search_space(model, {"input_ids": tokens}, layout="uniform")
        plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(params=0.5))
        save_pretrained(niwaki.cut(model, plan), "out/", {"input_ids": tokens})
        ...  # elsewhere: AutoModelForCausalLM.from_pretrained("out/")
    """
    kind = small.config.model_type
    if kind not in FAMILIES:
        raise _unsaid(
            f"niwaki does not know which numbers of a {kind!r} configuration follow the cut (it knows "
            f"{', '.join(sorted(FAMILIES))}; niwaki.huggingface.FAMILIES takes more)"
        )
    config, state = described(small, FAMILIES[kind])
    built = _built(small, config, state)
    target = Path(directory)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        built.save_pretrained(beside)
        if example_inputs is not None:
            _check_outputs(small, type(small).from_pretrained(beside), example_inputs)
        files = sorted(beside.iterdir(), key=lambda file: file.name == "config.json")  # the configuration last
        for file in files:
            flush_file(file)
        if target.is_dir():
            for file in files:
                os.replace(file, target / file.name)
            flush_directory(target)
        else:
            os.rename(beside, target)
            flush_directory(target.parent)
    except (OSError, SafetensorError) as cause:
        why = (isinstance(cause, OSError) and cause.strerror) or cause
        raise FileFormatError(
            f"Cannot save to {str(target)!r}: {why}. Name a directory that can be written to."
        ) from cause
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def described(small: PreTrainedModel, family: Family) -> tuple[Any, dict[str, Tensor]]:
    """A configuration that says the sizes of ``small``, and the tensors for a model of it.

    Raises:
        FileFormatError: there is none.
    """
    config, state = copy.deepcopy(small.config), dict(small.state_dict())
    head = None
    if family.head is not None:
        name, attribute = family.head
        head = next((m.__dict__[attribute] for m in small.modules() if attribute in m.__dict__), None)
        if head is None:
            raise _unsaid(f"no attention module says how large a head is ({attribute!r})")
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
                raise _unsaid(_differ(size, found))
            layers.setdefault(int(match[1]), {})[size.name] = found[name]
    if layers:
        config = _by_layer(
            small, config, layers, next(s for s in family.sizes if s.name in next(iter(layers.values())))
        )
    if family.epsilon is not None:
        setattr(config, family.epsilon, _epsilon(small, family, state))
    return config, state


def _sizes(state: Mapping[str, Tensor], size: Size, head: int | None) -> dict[str, int]:
    """The number that each tensor stands for."""
    found = {}
    for name, tensor in state.items():
        if re.fullmatch(size.tensor, name):
            found[name] = tensor.shape[size.dim]
            if size.heads and head is not None:
                if found[name] % head:
                    raise _unsaid(f"{name!r} has {found[name]} rows, which is no whole number of heads of {head}")
                found[name] //= head
    return found


def _differ(size: Size, found: Mapping[str, int]) -> str:
    first, value = next(iter(found.items()))
    other, unlike = next((name, number) for name, number in found.items() if number != value)
    return f"{size.name} would have to be {value} for {first!r} and {unlike} for {other!r}"


def _by_layer(small: PreTrainedModel, config: Any, layers: Mapping[int, Mapping[str, int]], size: Size) -> Any:
    """A configuration with ``per_layer_config``, if this transformers can build a model of it."""
    data = config.to_dict()
    for name in {name for numbers in layers.values() for name in numbers}:
        data[name] = max(numbers[name] for numbers in layers.values() if name in numbers)
    try:
        made = type(config)(**{**data, "per_layer_config": {layer: dict(numbers) for layer, numbers in layers.items()}})
        with torch.device("meta"):
            type(small)(made)
    except Exception as cause:
        found = {f"layer {layer}": numbers[size.name] for layer, numbers in layers.items() if size.name in numbers}
        raise _unsaid(
            f"{_differ(size, found)}, and this version of transformers cannot build a {config.model_type!r} model with "
            "a per_layer_config"
        ) from cause
    return made


def _epsilon(small: PreTrainedModel, family: Family, state: dict[str, Tensor]) -> float:
    """The epsilon of all norms; projections before norms with another are scaled, in ``state``."""
    norms = {
        name: m.__dict__["variance_epsilon"] for name, m in small.named_modules() if "variance_epsilon" in m.__dict__
    }
    free = {name: value for name, value in norms.items() if name.rpartition(".")[2] in family.scaled}
    rest = {name: value for name, value in norms.items() if name not in free}
    epsilon = float(next(iter((rest or norms).values())))
    for name, value in rest.items():
        if not math.isclose(value, epsilon, rel_tol=1e-9):
            raise _unsaid(
                f"{family.epsilon} would have to be {epsilon} for {next(iter(rest))!r} and {value} for {name!r}"
            )
    for name, value in free.items():
        parent, _, leaf = name.rpartition(".")
        # The mean square of what the norm reads, and with it the epsilon, may be in any unit.
        factor = math.sqrt(epsilon / value)
        for tensor in (f"{parent}.{family.scaled[leaf]}.{kind}" for kind in ("weight", "bias")):
            if tensor in state and factor != 1:
                state[tensor] = (state[tensor].double() * factor).to(state[tensor].dtype)
    return epsilon


def _built(small: PreTrainedModel, config: Any, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of the configuration with these very tensors."""
    try:
        type(config).from_dict(config.to_dict())  # which checks it, as loading does
        with torch.device("meta"):
            built = type(small)(config)
    except Exception as cause:
        raise _unsaid(
            f"a model cannot be built from the configuration ({type(cause).__qualname__}: {cause})"
        ) from cause
    there = built.state_dict()
    for name in (*state, *there):
        here, other = (list(tensors[name].shape) if name in tensors else "none" for tensors in (state, there))
        if here != other:
            raise _unsaid(f"{name!r} has the shape {here}, and a model built from the configuration has {other}")
    modules = dict(built.named_modules())
    for path, module in small.named_modules():
        for name, value in module.__dict__.items():
            other = modules[path].__dict__.get(name)
            if type(value) is float is type(other) and not math.isclose(value, other, rel_tol=1e-6):
                if name != "variance_epsilon":  # scaled away, or equal
                    raise _unsaid(f"{path}.{name} is {value}, and in a model built from the configuration {other}")
    built.load_state_dict(dict(state), assign=True)
    built.tie_weights()
    if small.can_generate():
        built.generation_config = copy.deepcopy(small.generation_config)
    return built


def _check_outputs(small: PreTrainedModel, loaded: PreTrainedModel, example_inputs: Any) -> None:
    torch.nn.Module.to(loaded, small.device).eval()  # type: ignore[no-untyped-call]
    modes = {module: module.training for module in small.modules()}
    for args, kwargs in example_calls(example_inputs):
        try:
            small.eval()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                mine, theirs = (
                    [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.is_floating_point()]
                    for model in (small, loaded)
                )
        finally:
            for module, training in modes.items():
                module.training = training
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            far = float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp_min(1e-30))
            if not far <= (_CLOSE if small.dtype in (torch.float32, torch.float64) else _CLOSE_HALF):
                raise _unsaid(
                    f"output {number} of the model that was written differs by {far:.1e} of the largest value"
                )


def _unsaid(why: str) -> FileFormatError:
    return FileFormatError(
        f"No ordinary configuration says this network: {why}. Cut with a plan of niwaki.search_space(..., "
        "layout='uniform') and keep what a configuration cannot say (`ignored=`), or use niwaki.save and niwaki.load."
    )
