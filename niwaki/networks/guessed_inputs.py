"""Guess example inputs of a transformers model from its class and its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 32  # the number of tokens of example texts
_SECOND = 16_000  # samples of audio

Maker = Callable[[Any], Tensor]


def guessed_inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Keyword inputs for a model of transformers, or None if the kind of its main input is not known here."""
    config: Any = model.config
    main: Any = model.main_input_name
    accepted = inspect.signature(model.forward).parameters
    if not isinstance(main, str) or main not in MAKERS or main not in accepted:
        main = next((name for name in MAKERS if name in accepted), None)
    if main is None:
        return None
    inputs = {main: MAKERS[main](config)}
    if "decoder_input_ids" in accepted and config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _tokens(config)
    # Where a token stands for an image, a text without it is complete; other models (CLIP) need both.
    if _read([config], ("image_token_id", "image_token_index")) is None:
        for name, tower in TOWERS.items():
            if name in accepted and name not in inputs and _read([config], (tower,)) is not None:
                inputs[name] = MAKERS[name](config)
    return inputs


def _tokens(config: Any) -> Tensor:
    """Random tokens that avoid the special ones at the beginning of most vocabularies; the last one ends the text."""
    settings = _all_of(config)
    vocabulary = _number(settings, ("vocab_size",), 1000)
    length = min(TOKENS, _number(settings, ("max_position_embeddings", "n_positions"), TOKENS))
    tokens = torch.randint(min(3, vocabulary - 1), vocabulary, (1, length), device="cpu")
    end = _read(settings, ("eos_token_id",))
    if isinstance(end, int) and 0 <= end < vocabulary:
        tokens[tokens == end] = vocabulary - 1 if end != vocabulary - 1 else 0
        tokens[:, -1] = end
    return tokens


def _image(config: Any) -> Tensor:
    settings = _all_of(config)
    size: Any = _read(settings, ("image_size", "input_size"))
    height, width = (224, 224) if size is None else (size, size) if isinstance(size, int) else tuple(size)[-2:]
    shape = (_number(settings, ("num_channels", "in_channels", "in_chans"), 3), height, width)
    frames = _read(settings, ("num_frames",))
    return torch.randn(1, *shape, device="cpu") if frames is None else torch.randn(1, frames, *shape, device="cpu")


def _spectrum(config: Any) -> Tensor:
    """Mel features: [batch, bins, time] for the Whisper family, whose configuration has the number of positions, else
    [batch, time, bins]."""
    settings = _all_of(config)
    whisper = _read(settings, ("num_mel_bins",)), _read(settings, ("max_source_positions",))
    if whisper[0] is not None and whisper[1] is not None and _read(settings, ("input_feat_per_channel",)) is None:
        return torch.randn(1, whisper[0], 2 * whisper[1], device="cpu")
    bins = _number(settings, ("input_feat_per_channel", "num_mel_bins", "feature_size", "input_dim"), 80)
    return torch.randn(1, 100, bins * _number(settings, ("input_channels",), 1), device="cpu")


def _sound(config: Any) -> Tensor:
    """A second of samples; the audio spectrogram transformer takes frames of mel bins."""
    frames, bins = _read([config], ("max_length",)), _read([config], ("num_mel_bins",))
    if isinstance(frames, int) and isinstance(bins, int):
        return torch.randn(1, frames, bins, device="cpu")
    return torch.randn(1, _SECOND, device="cpu")


MAKERS: Mapping[str, Maker] = {
    "input_ids": _tokens,
    "pixel_values": _image,
    "input_features": _spectrum,
    "input_values": _sound,
}
TOWERS: Mapping[str, str] = {
    "pixel_values": "vision_config",
    "input_features": "audio_config",
    "input_values": "audio_config",
}


def _all_of(config: Any) -> list[Any]:
    """A configuration and those inside it."""
    from transformers import PretrainedConfig

    inner = [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
    return [config, *(deeper for value in inner for deeper in _all_of(value))]


def _read(settings: Iterable[Any], names: Iterable[str]) -> Any:
    """The first of several settings that is set in the configuration or those inside it."""
    for config in settings:
        for name in names:
            value = getattr(config, name, None)
            if value is not None:
                return value
    return None


def _number(settings: Iterable[Any], names: Iterable[str], otherwise: int) -> int:
    value = _read(settings, names)
    return value if isinstance(value, int) and value > 0 else otherwise
