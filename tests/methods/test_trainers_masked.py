"""DDPTraining and ATP, which run the model in a block, in loops that others wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora import Llama, adapted
from lora_training import TOKENS
from processes import side_by_side
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.networks.torchvision_cpu import load

SCHEDULE, STEPS = niwaki.Schedule(start=2, until=22), 24
KINDS = ("ddp", "atp")


class Decoder(nn.Module):
    """Tokens to logits and the loss of the next ones, as transformers have it; with adapters, or without."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        llama = Llama(layers=1)
        self.llama = adapted(llama) if kind == "atp" else llama

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.llama(input_ids)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens, labels=tokens)["loss"]
    return found


def attached(kind: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    space = niwaki.search_space(model, {"input_ids": TOKENS[:2]}, rehearse=False)
    budget = niwaki.Budget(params=0.7)
    if kind == "ddp":
        return niwaki.DDPTraining(space, optimizer, budget, SCHEDULE)
    return niwaki.ATP(space, optimizer, budget, SCHEDULE, loss_fn=loss_of, batches=[TOKENS[:8], TOKENS[8:16]])


def built(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = Decoder(kind)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    return model, optimizer, attached(kind, model, optimizer)


def is_cut_without_loss(model: nn.Module, method: Any) -> None:
    """Under the mask, as it is, and cut it computes the same."""
    model.eval()
    assert method.done and niwaki.check(model, method.plan(), {"input_ids": TOKENS[:2]}).holds
    with torch.no_grad():
        whole = model(TOKENS)["logits"]
        with method.masked():
            masked = model(TOKENS)["logits"]
        small = niwaki.cut(model, method.plan())(TOKENS)["logits"]
    assert float((masked - whole).abs().max()) <= 1e-5 * float(whole.abs().max())
    assert float((small - whole).abs().max()) <= 1e-5 * float(whole.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_trainer_and_its_checkpoints(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    load()
    from transformers import Trainer, TrainingArguments

    class Masked(Trainer):  # type: ignore[misc]
        method: Any

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            with self.method.masked():
                found: Tensor = super().training_step(*args, **kwargs)
            return found

    def run(name: str, resume: Path | None) -> tuple[nn.Module, Any]:
        model = Decoder(kind)
        more = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "gradient_accumulation_steps": 2}
        arguments = TrainingArguments(
            str(tmp_path / name),
            per_device_train_batch_size=4,
            learning_rate=0.01,
            max_steps=STEPS,
            save_steps=10,
            **more,
        )
        trainer = Masked(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in TOKENS])
        method = trainer.method = attached(kind, model, trainer.create_optimizer())
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return model, method

    model, method = run("whole", None)
    assert method.step == STEPS
    is_cut_without_loss(model, method)
    shutil.copytree(tmp_path / "whole" / "checkpoint-10", tmp_path / "again" / "checkpoint-10")
    again, resumed = run("again", tmp_path / "again" / "checkpoint-10")
    assert resumed.plan().kept == method.plan().kept
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate_with_accumulated_gradients_in_half_precision(kind: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # one precision per process otherwise
    model, optimizer, method = built(kind)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    wrapped, stepper, batches = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(TOKENS, batch_size=6))
    for _ in range(STEPS // 2):
        for tokens in batches:
            with accelerator.accumulate(wrapped), method.masked():
                accelerator.backward(loss_of(wrapped, tokens))
            stepper.step()
            stepper.zero_grad()
    assert method.step == STEPS  # of twice as many batches
    del wrapped.forward  # accelerate's, which computes in bfloat16
    is_cut_without_loss(model, method)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_scaler_that_skips_steps(kind: str) -> None:
    """What an overflow leaves teaches nothing, and the step does not count."""
    model, optimizer, method = built(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for step in range(STEPS + 2):
        optimizer.zero_grad()
        with method.masked():
            loss = loss_of(model, TOKENS[step % 3 :: 3])
            scaler.scale(loss * float("inf") if step in (4, 11) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert method.step == STEPS
    assert all(bool(one.isfinite().all()) for one in model.parameters())
    is_cut_without_loss(model, method)


@pytest.mark.parametrize("kind", KINDS)
def test_lightning(kind: str, tmp_path: Path) -> None:
    load()
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Decoder(kind)

        def training_step(self, tokens: Tensor, _: int) -> Tensor:
            with self.method.masked() as model:
                return loss_of(model, tokens)

        def setup(self, stage: str) -> None:
            self.to(self.trainer.strategy.root_device)
            self.optimizer = torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], lr=0.01)
            self.method = attached(kind, self.model, self.optimizer)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    module = Module()
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = {"enable_checkpointing": False, "default_root_dir": tmp_path}
    trainer = lightning.Trainer(max_steps=STEPS, accelerator="cpu", **silent, **checkpoints)
    trainer.fit(module, torch.utils.data.DataLoader(TOKENS, batch_size=6))
    assert module.method.step == STEPS
    is_cut_without_loss(module.model, module.method)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    found = {}
    for kind in KINDS:
        model, optimizer, method = built(kind)
        wrapped = nn.parallel.DistributedDataParallel(model)
        for step in range(STEPS):
            tokens = TOKENS[step % 3 :: 3][rank::2]
            optimizer.zero_grad()
            with method.masked():
                loss_of(wrapped, tokens).backward()
            optimizer.step()
        is_cut_without_loss(model, method)
        found[f"{kind} keeps"] = np.array([str(method.plan().kept)])
        found[kind] = np.concatenate([one.detach().numpy().reshape(-1) for one in model.parameters()])
    np.savez(f"{folder}/{rank}.npz", **found)


def test_processes_that_share_gradients_learn_the_same_mask(tmp_path: Path) -> None:
    side_by_side(work, tmp_path)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
