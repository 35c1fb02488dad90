"""The recipes of docs/ema_and_checkpoints.md run as they stand, and what they lead to can be cut without loss."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import SCHEDULE, training
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import sgd

import niwaki
from niwaki.networks.torchvision_cpu import load

PAGE = Path(__file__).parents[2] / "docs" / "ema_and_checkpoints.md"
BEST, AVERAGE, TRAINER = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture(autouse=True)
def nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not zero")
        yield


def setting(steps: int) -> dict[str, Any]:
    run = training("hesso", sgd, "conv")
    return {
        "niwaki": niwaki,
        "torch": torch,
        "run": run,
        "model": run.model,
        "optimizer": run.optimizer,
        "method": run.method,
        "schedule": SCHEDULE,
        "loss_fn": nn.functional.cross_entropy,
        "batches": [(run.x[step % 40], run.y[step % 40]) for step in range(steps)],
    }


@pytest.mark.parametrize("patience", [3, 100])
def test_the_best_checkpoint(patience: int) -> None:
    """The best one of all is an early one."""
    names = setting(5)
    epochs, seen = 12, []

    def evaluate(model: nn.Module) -> float:
        seen.append(copy.deepcopy(model))
        return 1 - len(seen) / 100

    exec(BEST, names | {"epochs": epochs, "patience": patience, "evaluate": evaluate})
    done = -(-SCHEDULE.until // 5)  # epochs until the first checkpoint that counts
    assert len(seen) == min(done + patience, epochs)
    loaded = torch.load("best.pt")
    assert all(torch.equal(value, loaded[name]) for name, value in seen[done - 1].state_dict().items())


def test_the_average() -> None:
    names = setting(SCHEDULE.until + 20)
    names |= {"AveragedModel": AveragedModel, "get_ema_multi_avg_fn": get_ema_multi_avg_fn}
    exec(AVERAGE, names)
    found = niwaki.check(names["average"].module, names["method"].plan(), names["batches"][0][0])
    assert found.holds and found.zero


def test_hugging_face_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    load()
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    texts = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (32, 12))]
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    more |= {"learning_rate": 0.01, "greater_is_better": True}  # so that an early evaluation is the best
    names = {
        "niwaki": niwaki,
        "Trainer": Trainer,
        "TrainingArguments": TrainingArguments,
        "folder": str(tmp_path),
        "other_arguments": more,
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, **heads)),
        "texts": texts,
        "tokens": texts[0]["input_ids"][None],
    }
    exec(TRAINER, names)
    assert names["trainer"].state.best_global_step >= names["schedule"].until
    assert names["method"].done
