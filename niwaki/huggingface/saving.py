"""Write a cut network as an ordinary checkpoint, and load it once to check it."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from niwaki.core.modes import eval_mode
from niwaki.huggingface.configuration import built_from, described, family_of, unsaid
from niwaki.io.atomic import cannot_save, flush_directory, flush_file
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import example_calls

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CLOSE, _CLOSE_HALF = 1e-4, 3e-2  # relative to the largest value


def save_pretrained(small: PreTrainedModel, directory: str | os.PathLike[str], example_inputs: Any = None) -> None:
    """Write a cut network as ``config.json`` and ``model.safetensors``, which ``from_pretrained`` loads without niwaki.

    The configuration is computed from the tensors, and a model built from it must have exactly these tensors and the
    same scales. The network is not changed; an existing directory keeps its other files.

    Args:
        small: the network that `niwaki.cut` returned, trained further or not.
        directory: created, with its parents, if it does not exist.
        example_inputs: if given, the written files are loaded once, and must give the same outputs for them: a tensor
            or tuple is positional, a dict is keywords.

    Raises:
        FileFormatError: this network cannot be expressed in a config.json; the message names the tensor or layer.
            Nothing is written.

    Example::

        space = niwaki.search_space(model, {"input_ids": tokens}, layout="uniform")
        assert can_save(space), can_save(space)  # before the training
        plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(params=0.5))
        save_pretrained(niwaki.cut(model, plan), "out/", {"input_ids": tokens})
        ...  # elsewhere: AutoModelForCausalLM.from_pretrained("out/")
    """
    config, state = described(small, family_of(small))
    built = built_from(small, config, state)
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
        raise cannot_save(target, cause) from cause
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_outputs(small: PreTrainedModel, loaded: PreTrainedModel, example_inputs: Any) -> None:
    torch.nn.Module.to(loaded, small.device)
    for args, kwargs in example_calls(example_inputs):
        with eval_mode(small, loaded), torch.no_grad():
            mine, theirs = (
                [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.is_floating_point()]
                for model in (small, loaded)
            )
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            far = float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp_min(1e-30))
            if not far <= (_CLOSE if small.dtype in (torch.float32, torch.float64) else _CLOSE_HALF):
                raise unsaid(f"output {number} of the model that was written differs by {far:.1e} of the largest value")
