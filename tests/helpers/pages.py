"""What the pages of docs/ take for granted: a model, its data and its training, as small as can be."""

from __future__ import annotations

from typing import Any

import torch
from lora import LoraLinear
from mixtures import Around, Listed
from torch import Tensor, nn

import niwaki
from niwaki.huggingface import can_save

SCHEDULE = niwaki.Schedule(start=2, until=42)
BUDGET = niwaki.Budget(macs=0.5)


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x.relu()).relu()))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A stem, two residual branches and a classifier of images [B, 1, 6, 6]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 4)
        self.branches = nn.ModuleList(Branch(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x.relu().mean((2, 3)))  # type: ignore[no-any-return]


def loss_fn(first: Any, second: Any) -> Tensor:
    """Of a model and a batch, or of outputs and labels: pages use both, and say which."""
    if isinstance(first, nn.Module):
        x, y = second
        return nn.functional.cross_entropy(first(x), y)
    return nn.functional.cross_entropy(first, second)


def names(model: nn.Module | None = None) -> dict[str, Any]:
    """A model that has seen nothing, and all that a loop around it has."""
    torch.manual_seed(0)
    model = Residual() if model is None else model
    x, y = torch.randn(32, 1, 6, 6), torch.randint(4, (32,))
    pairs = [(x[:16], y[:16]), (x[16:], y[16:])]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    return {
        **{"niwaki": niwaki, "torch": torch, "nn": nn, "model": model, "x": x, "y": y, "optimizer": optimizer},
        **{"space": niwaki.search_space(model, x[:2]), "example_inputs": x[:2], "loss_fn": loss_fn},
        **{"batches": pairs, "loader": pairs, "batch": pairs[0], "held_out": pairs},
        **{"schedule": SCHEDULE, "budget": BUDGET, "subset": list(zip(x, y, strict=True))},
    }


def with_adapters() -> dict[str, Any]:
    """The same of a network that is frozen but for its adapters."""
    model = nn.Sequential(nn.Flatten(), LoraLinear(nn.Linear(36, 16)), nn.ReLU(), LoraLinear(nn.Linear(16, 4)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    return names(model)


def hugging_face() -> dict[str, Any]:
    """A Trainer's model and data, and a BERT."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainingArguments,
    )

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    bert = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2))
    tokens = torch.randint(32, (8, 6))
    quiet = {"max_steps": 2, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    return {
        **{"niwaki": niwaki, "torch": torch, "model": llama, "bert": bert, "tokens": tokens, "can_save": can_save},
        **{"inputs": {"input_ids": tokens}, "data": [{"input_ids": row, "labels": row} for row in tokens]},
        **{"Trainer": Trainer, "arguments": TrainingArguments("out/trainer", **quiet)},
    }


def accelerated() -> dict[str, Any]:
    """The names of a loop, with an accelerator that has prepared nothing yet."""
    from accelerate import Accelerator

    found = names()
    loader = torch.utils.data.DataLoader(found["subset"], batch_size=16)
    return found | {"accelerator": Accelerator(cpu=True), "batches": loader}


def masked() -> dict[str, Any]:
    """The same of a method that runs the model in a block, and a Trainer's class."""
    from transformers import Trainer

    found = accelerated()
    return found | {"method": _method(niwaki.DDPTraining, found), "Trainer": Trainer}


def with_history() -> dict[str, Any]:
    """What a loop of one's own knows at its end."""
    found = names()
    small = niwaki.cut(found["model"], niwaki.choose(found["space"], niwaki.score(found["space"], "magnitude"), BUDGET))
    return found | {"method": _method(niwaki.HESSO, found), "small": small, "history": [{"step": 1, "loss": 1.2}]}


def _method(kind: Any, found: dict[str, Any]) -> Any:
    return kind(found["space"], found["optimizer"], BUDGET, SCHEDULE)


def of_experts() -> dict[str, Any]:
    """A mixture of experts, in a space with structures."""
    model, x, y = Around(Listed()), torch.randn(32, 3), torch.randint(2, (32,))
    space = niwaki.search_space(model, x, erase=True)
    return {"niwaki": niwaki, "model": model, "space": space, "batches": [(x, y)], "loss_fn": loss_fn}
