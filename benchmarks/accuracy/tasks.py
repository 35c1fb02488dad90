"""The tasks by name. Each has a full and a smoke size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.accuracy import text, vision
from benchmarks.accuracy.networks import CifarResNet
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.where import Where
from niwaki.networks.demo_supernet import DemoSupNet
from niwaki.networks.super_resnet import SuperResNet

Build = Callable[[Where, int], Task]  # of a seed, which splits the digits
TASKS: Mapping[str, Build] = {
    "digits": vision.digits,
    "digits-vit": vision.digits_vit,
    "fashion": vision.fashion,
    "fashion-super-resnet": partial(
        vision.fashion,
        name="fashion-super-resnet",
        build=partial(SuperResNet, 10, 1, (10, 20, 40), (1, 1, 1), (3, 5)),
        about="super-network 10-20-40 of 3x3 beside 5x5",
    ),
    "fashion-super-resnet-357": partial(
        vision.fashion,
        name="fashion-super-resnet-357",
        build=partial(SuperResNet, 10, 1, (12, 24, 48), (1, 1, 1), (3, 5, 7), stride=2),
        about="super-network 12-24-48 of 3x3 beside 5x5 beside 7x7 at half of the resolution",
    ),
    "fashion-demo-supernet": partial(
        vision.fashion,
        name="fashion-demo-supernet",
        build=partial(DemoSupNet, 10, 1, 40, stride=2),
        about="DemoSupNet of width 40 at half of the resolution",
    ),
    "fashion-resnet20": partial(
        vision.fashion,
        name="fashion-resnet20",
        build=partial(CifarResNet, 10, 1, blocks=3),
        about="resnet20 16-32-64",
    ),
    "cifar10-airbench-8": vision.airbench,
    "cifar10-airbench-16": partial(vision.airbench, epochs=16),
    "cifar10-resnet20": vision.resnet20,
    "cifar10-finetune-200-steps": vision.finetuned,
    "cifar10-finetune-5-epochs": partial(vision.finetuned, epochs=5),
    "cifar10-darts": vision.darts,
    "shakespeare": text.shakespeare,
    "stories": text.stories,
    "cifar10-resnet56": partial(vision.gpu, layers=56, blocks=9, widths=(16, 32, 64)),
    "cifar10-resnet18": partial(vision.gpu, layers=18, blocks=2, widths=(64, 128, 256, 512)),
}
