"""A source of networks: transformers, by configuration files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.errors import RunError, nearest
from niwaki.networks import torchvision_cpu
from niwaki.networks.guessed_inputs import guessed_inputs
from niwaki.networks.source import ExampleNetwork, ImageTask, LibrarySource, NetworkRequest, source


@source
class TransformersSource(LibrarySource):
    """``hf:CLASS/path/config.json``, or ``hf:path/config.json`` where the file names its class. Random weights, only
    code of the installed library, nothing downloaded."""

    prefix, form = "hf:", "hf:CLASS/config.json"

    def fit(self, item: str, task: ImageTask, width: float) -> nn.Module:
        """Refused: such networks have other inputs and outputs than this recipe."""
        raise RunError(
            f"hf:{item} can be inspected, but `niwaki train` trains networks that take images and return scores. "
            "Train it in your own loop: niwaki.search_space, a method, niwaki.cut."
        )

    def show(self, item: str, wish: NetworkRequest) -> ExampleNetwork:
        """The network of the configuration, and inputs guessed from it."""
        library = _library(item)
        path, kind = _path_and_class(library, item)
        settings = _settings(path)
        model_class = _class(library, path, kind, settings)
        if kind is None and model_class.config_class.model_type != settings.get("model_type"):
            raise RunError(
                f"{str(path)!r} is for the model type {settings.get('model_type')!r}, which "
                f"{model_class.__name__} does not take. Name the class: hf:CLASS/{path}."
            )
        if wish.classes is not None:
            settings["num_labels"] = wish.classes
        config: Any = model_class.config_class.from_dict(settings)
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            part.use_cache = False  # otherwise keys and values are outputs of the model, which are pinned
        model: nn.Module = model_class(config)
        return ExampleNetwork(model, guessed_inputs(model))


def _library(item: str) -> Any:
    try:
        torchvision_cpu.load()  # transformers imports it where it is installed
    except ImportError:
        pass
    library = torchvision_cpu.import_library("transformers", f"hf:{item}")
    library.logging.set_verbosity_error()
    return library


def _path_and_class(library: Any, item: str) -> tuple[Path, str | None]:
    """Split an item: an existing path has no class; otherwise the class stands before the first slash."""
    whole = _file(Path(item))
    if whole is not None:
        return whole, None
    kind, slash, rest = item.partition("/")
    path = _file(Path(rest)) if slash else None
    if path is None:
        raise RunError(
            f"There is no configuration {item!r}. Give the path of a config.json, with the class before it if the "
            "file has no class: hf:LlamaForCausalLM/path/to/config.json."
        )
    return path, kind


def _file(path: Path) -> Path | None:
    if path.is_dir():
        path = path / "config.json"
    return path if path.is_file() else None


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise RunError(f"{str(path)!r} is not JSON: {cause}.") from cause
    if not isinstance(settings, dict):
        raise RunError(f"{str(path)!r} is not a configuration: it holds a {type(settings).__name__}, not an object.")
    return settings


def _class(library: Any, path: Path, given: str | None, settings: dict[str, Any]) -> Any:
    named = settings.get("architectures") or []
    kind = given or (named[0] if isinstance(named, list) and named else None)
    if kind is None:
        raise RunError(f"{str(path)!r} names no class under 'architectures'. Name it: hf:CLASS/{path}.")
    found = getattr(library, kind, None) if kind in dir(library) else None
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise RunError(
            f"transformers {library.__version__} has no model class {kind!r}.{nearest(kind, _names(library))}"
        )
    return found


def _names(library: Any) -> list[str]:
    return [name for name in dir(library) if name.endswith(("Model", "LM")) or "For" in name]
