"""transformers: one tiny random model per architecture, built from its configuration class with small sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.entries import Entry
from benchmarks.zoo.tiny_configs import tiny_configs
from benchmarks.zoo.tiny_inputs import tiny_inputs
from benchmarks.zoo.transformers_list import KINDS

# The first of these tasks that an architecture has a head for; the bare model if it has none.
_TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "MASKED_LM",
    "CAUSAL_LM",
    "OBJECT_DETECTION",
    "ZERO_SHOT_OBJECT_DETECTION",
    "IMAGE_CLASSIFICATION",
    "UNIVERSAL_SEGMENTATION",
    "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "VIDEO_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "TIME_SERIES_PREDICTION",
    "SEQUENCE_CLASSIFICATION",
)
_BARE = ("vjepa2",)  # whose head leaves out a part of the model
_MOST = 60_000_000  # parameters: a configuration that is still larger was not made small


def entries() -> list[Entry]:
    """One entry per listed architecture that the installed transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [
        Entry("transformers", name, kind, partial(build, name))
        for kind, names in KINDS.items()
        for name in names.split()
        if name in CONFIG_MAPPING_NAMES
    ]


def prepare() -> None:
    """Import what most architectures import, before the processes part: it takes longer than most of them."""
    for name in ("llama", "whisper", "llava", "detr"):
        build(name)


def build(name: str) -> tuple[nn.Module, Any]:
    """The first of ever more careful configurations with which the model runs, and its inputs."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind = model_class(name)
    failures = []
    for config in tiny_configs(name):
        try:
            torch.manual_seed(0)
            if isinstance(config, Exception):
                raise config
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in kind(config).parameters())
            if size > _MOST:
                raise ValueError(f"still {size:,} parameters")
            model = kind(config).eval()
            return model, tiny_inputs(name, model)
        except Exception as cause:  # noqa: BLE001 - the next configuration is tried
            failures.append(f"{type(cause).__name__}: {cause}")
    raise RuntimeError(" | ".join(dict.fromkeys(failures)))


def model_class(name: str) -> Any:
    """The class with the head of the first task, or the bare model."""
    import transformers
    from transformers.models.auto import modeling_auto

    for task in _TASKS if name not in _BARE else ():
        found = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").get(name)
        if found is not None:
            return getattr(transformers, found[0] if isinstance(found, tuple) else found)
    found = modeling_auto.MODEL_MAPPING_NAMES[name]
    return getattr(transformers, found[0] if isinstance(found, tuple) else found)
