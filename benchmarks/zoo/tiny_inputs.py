"""Inputs of any model of transformers, found by trying: the shapes a name can have, until one runs."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.entries import generator, image
from benchmarks.zoo.tiny_configs import SPECIAL
from benchmarks.zoo.transformers_inputs import INPUTS

Shapes = list[Tensor]
_LENGTH = 9
_ATTEMPTS = 60


def tiny_inputs(name: str, model: nn.Module) -> dict[str, Any]:
    """Keyword inputs that the model runs on.

    Raises:
        RuntimeError: none of the attempts runs; with the error of the first.
    """
    failures: list[str] = []
    attempts = _attempts(name, model)
    for inputs in itertools.islice(attempts, _ATTEMPTS):
        for _ in range(3):
            try:
                with torch.no_grad():
                    model(**inputs)
                return inputs
            except Exception as cause:  # noqa: BLE001 - whatever it is, another shape is tried
                failures.append(f"{type(cause).__name__}: {cause}"[:200])
                changed = _with_image_tokens(inputs, str(cause), read(model.config, "hidden_size", default=32))
                if changed is None:
                    break
                inputs = changed
    raise RuntimeError(f"no inputs work ({len(failures)} tried); first {failures[0]}; last {failures[-1]}")


def _attempts(name: str, model: nn.Module) -> Iterator[dict[str, Any]]:
    config: Any = model.config
    if name in INPUTS:
        accepted = inspect.signature(model.forward).parameters
        yield {key: value for key, value in INPUTS[name](config).items() if key in accepted}
        return
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    required = [
        key
        for key, parameter in accepted.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    names = [key for key in (main, *required) if key in MAKERS and key in accepted]
    names += [key for key in ("input_ids", "pixel_values") if key in accepted and key not in names]
    if config.is_encoder_decoder and "decoder_input_ids" in accepted:
        names.append("decoder_input_ids")
    if "bbox" in accepted:
        names.append("bbox")
    names = list(dict.fromkeys(names))
    without = [key for key in names if key == main or key in required or key in ("decoder_input_ids", "bbox")]
    for chosen in dict.fromkeys((tuple(names), tuple(without), (main,))):
        options = [MAKERS[key](config) for key in chosen if key in MAKERS]
        for values in itertools.product(*options):
            yield dict(zip([key for key in chosen if key in MAKERS], values, strict=True))


def _with_image_tokens(inputs: dict[str, Any], complaint: str, width: int) -> dict[str, Any] | None:
    """More tokens that stand for parts of the image, where the model says how many it needs. Some count features, some
    count their entries: ``width`` of them each."""
    found = re.search(r"tokens:? \(?(\d+)\)?.*?features:? \(?(\d+)", complaint)
    if found is None or "input_ids" not in inputs:
        return None
    rows, given, number = len(inputs["input_ids"]), int(found.group(1)), int(found.group(2))
    number = number // width if given >= number else number
    if number > 4000 or number % rows:
        return None
    text = tokens(None, rows=rows)
    token = SPECIAL["audio"] if "udio" in complaint else SPECIAL["video"] if "ideo" in complaint else SPECIAL["image"]
    special = torch.full((rows, number // rows), token)
    return inputs | {"input_ids": torch.cat([text[:, :1], special, text[:, 1:]], 1)}


def read(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these settings that the configuration, or one nested in it, has."""
    parts = [config]
    for name in getattr(config, "sub_configs", {}) or {}:
        part = getattr(config, name, None)
        if part is not None:
            parts.append(part)
    for name, part in itertools.product(names, parts):
        value = getattr(part, name, None)
        if value is not None:
            return value
    return default


def tokens(config: Any, length: int = _LENGTH, seed: int = 1, rows: int = 2) -> Tensor:
    """Random ordinary tokens, of the small vocabulary if no configuration is given."""
    vocabulary = min(80, read(config, "vocab_size", default=80))
    return torch.randint(8, vocabulary, (rows, length), generator=generator(seed))


def sides(config: Any) -> tuple[int, int]:
    """Height and width of images."""
    size = read(config, "image_size", "input_size", default=32)
    pair = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return int(pair[0]), int(pair[1])


def _images(config: Any) -> Shapes:
    channels, (height, width) = read(config, "num_channels", "in_channels", "in_chans", default=3), sides(config)
    channels = channels if isinstance(channels, int) else 3
    frames = read(config, "num_frames", default=2)
    found = [image(2, channels, height, width), image(2, frames, channels, height, width)]
    found += [image(1, channels, side, side) for side in (64, 128, 224)]
    return found + [image(2, 1, channels, height, width)]


def _spectra(config: Any) -> Shapes:
    bins = read(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "input_size", default=80)
    lengths = [2 * read(config, "max_source_positions", default=32), read(config, "max_length", default=64), 64, 128]
    found = [shape for length in lengths for shape in (image(2, length, bins), image(2, bins, length))]
    return found


def _waves(config: Any) -> Shapes:
    bins = read(config, "num_mel_bins", default=16)
    length = read(config, "max_length", default=64)
    return [image(2, 4000), image(2, 1, 4000), image(2, length, bins), image(1, 16000), image(2, 64, bins)]


def _boxes(config: Any) -> Shapes:
    corner = torch.randint(0, 50, (2, _LENGTH, 2), generator=generator())
    return [torch.cat([corner, corner + 20], 2)]


def _series(config: Any) -> Shapes:
    length, channels = read(config, "context_length", default=32), read(config, "num_input_channels", default=1)
    lags = max(read(config, "lags_sequence", default=[0]))
    return [image(2, length, channels), image(2, length + lags), image(2, length)]


MAKERS: dict[str, Callable[[Any], Shapes]] = {
    "input_ids": lambda config: [tokens(config)],
    "decoder_input_ids": lambda config: [tokens(config, 5, 2)],
    "pixel_values": _images,
    "pixel_values_videos": lambda config: [
        image(1, read(config, "frames_per_clip", "num_frames", default=4), 3, *sides(config))
    ],
    "input_features": _spectra,
    "input_values": _waves,
    "audio_values": _waves,
    "bbox": _boxes,
    "past_values": _series,
    "attention_mask": lambda config: [torch.ones(2, _LENGTH, dtype=torch.long)],
}
