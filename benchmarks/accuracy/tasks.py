"""The tasks by name, each in a short form for a CPU and, for those that are large enough, a full one for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.images import Augmentation, ImageTask, cifar10, limited
from benchmarks.accuracy.language import LanguageTask, characters, tokens
from benchmarks.accuracy.networks import CifarResNet, RowReader, VisionTransformer, llama, pretrained
from benchmarks.accuracy.task import Recipe, Task
from niwaki.train.data import Images, load_images
from niwaki.train.networks import BUILT_IN


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a task is. ``train``, ``test``: images (None: all); ``fast``: bfloat16 on a GPU."""

    epochs: int
    batch: int = 64
    lr: float = 0.02
    train: int | None = None
    test: int | None = None
    fast: bool = False
    weight_decay: float = 5e-4
    adam: bool = False

    def recipe(self, images: Images) -> Recipe:
        """The same in optimizer steps."""
        steps = self.epochs * (len(images.train_y) // self.batch)
        return Recipe(steps, self.batch, self.lr, self.weight_decay, self.adam)


@dataclass(frozen=True, slots=True)
class Where:
    """What a task is built from: the folder of the data, the device, and which form of the task: the ``full`` one, or
    that of a CPU, ``longer`` times as many steps of it."""

    data: Path | None
    device: torch.device
    full: bool = False
    longer: int = 1

    def path(self, name: str) -> Path:
        """A file or folder of the data."""
        if self.data is None:
            raise SystemExit(f"This task needs {name} in the folder of the data: give it with --data.")
        if not (self.data / name).exists():
            raise SystemExit(
                f"There is no {name} in {self.data}. `python -m benchmarks.accuracy --help` tells what belongs there."
            )
        return self.data / name


Build = Callable[[Where, int], Task]  # of a seed, which splits the digits
_images = lru_cache(maxsize=4)(load_images)
_cifar = lru_cache(maxsize=1)(cifar10)


def _of_images(name: str, images: Images, scale: Scale, build: Any, where: Where, augmentation: Augmentation) -> Task:
    images = limited(images, scale.train, scale.test)
    return ImageTask(name, scale.recipe(images), images, build, where.device, augmentation, scale.fast)


def _digits(where: Where, seed: int, name: str, build: Any, scale: Scale) -> Task:
    return _of_images(name, _images("digits", seed), scale, build, where, Augmentation(1))


def _fashion(where: Where, seed: int, name: str, build: Any, short: Scale) -> Task:
    images = _images(str(where.path("fashion_mnist/fashion_mnist.npz")), 0)
    scale = Scale(60, 128, 0.05, fast=True) if where.full else short
    return _of_images(name, images, scale, build, where, Augmentation(1))


def _cifar10(where: Where, seed: int) -> Task:
    """ResNet-20, every image once; in full ResNet-56, 200 epochs."""
    images = _cifar(where.path("cifar10"))
    scale = Scale(200, 128, 0.1, fast=True) if where.full else Scale(1, 32, 0.02)
    blocks, augmentation = (9, Augmentation(4, True)) if where.full else (3, Augmentation(2, True))

    def build(classes: int, channels: int, size: tuple[int, int], width: float) -> torch.nn.Module:
        return CifarResNet(classes, channels, width, blocks)

    return _of_images(f"cifar10-resnet{6 * blocks + 2}", images, scale, build, where, augmentation)


def _shakespeare(where: Where, seed: int) -> Task:
    """A Llama of two layers on the characters of Shakespeare."""
    texts = characters(where.path("text/tinyshakespeare.txt"))
    settings = {
        "vocab_size": int(max(text.max() for text in texts)) + 1,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    recipe = Recipe(400, 16, 3e-3, 0.01, adam=True)
    return LanguageTask("char-llama", recipe, texts, partial(llama, **settings), where.device, 64, 128)


def _stories(where: Where, seed: int) -> Task:
    """The 260,032-parameter Llama of TinyStories, trained on; narrower ones begin from scratch."""
    folder = where.path("weights/stories260K")
    settings = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }

    def build(width: float) -> torch.nn.Module:
        return pretrained(folder) if width == 1 else llama(width, **settings)

    recipe = Recipe(120, 8, 1e-3, 0.01, adam=True)
    return LanguageTask(
        "stories", recipe, tokens(where.path("text/tinystories_tok512.npz")), build, where.device, 128, 64
    )


_RESNET = BUILT_IN["resnet"]
TASKS: Mapping[str, Build] = {
    "digits": partial(_digits, name="digits", build=_RESNET, scale=Scale(20)),
    "digits-vit": partial(
        _digits, name="digits-vit", build=VisionTransformer, scale=Scale(90, 64, 2e-3, weight_decay=0.05, adam=True)
    ),
    "fashion": partial(_fashion, name="fashion", build=_RESNET, short=Scale(6, train=4000)),
    "fashion-gru": partial(
        _fashion, name="fashion-gru", build=RowReader, short=Scale(18, 64, 3e-3, 4000, weight_decay=0.01, adam=True)
    ),
    "cifar10": _cifar10,
    "char-llama": _shakespeare,
    "stories": _stories,
}


def built(name: str, where: Where, seed: int) -> Task:
    """The task called ``name``, as long as ``where`` says."""
    task = TASKS[name](where, seed)
    task.recipe = replace(task.recipe, steps=where.longer * task.recipe.steps)
    return task
