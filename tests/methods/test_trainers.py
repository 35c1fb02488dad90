"""Loops that others wrote: Hugging Face's Trainer, Accelerate, Lightning, and several processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import side_by_side
from torch import Tensor, nn

import niwaki
from niwaki.methods.registry import Training, attach, erasing, methods
from niwaki.networks.torchvision_cpu import load

SCHEDULE = niwaki.Schedule(start=6, until=26, periods=5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 12), nn.Linear(12, 4)
    )


class Branches(nn.Module):
    """Residual branches, for methods that erase whole structures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 4)
        self.branches = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        result: Tensor = self.head(x.relu().mean((2, 3)))
        return result


Attach = Callable[..., Any]


def hesso(space: Any, optimizer: Any, budget: niwaki.Budget, loss_fn: Any, held_out: Any, shrink: Any = False) -> Any:
    return niwaki.HESSO(space, optimizer, budget, SCHEDULE, shrink=shrink)


def ato(space: Any, optimizer: Any, budget: niwaki.Budget, loss_fn: Any, held_out: Any, shrink: Any = False) -> Any:
    return niwaki.ATO(space, optimizer, budget, SCHEDULE, loss_fn=loss_fn, batches=held_out, shrink=shrink)


def labelled_loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def images(count: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(0, 4, (count,), generator=generator)


def zero_and_exact(model: nn.Module, method: Any, x: Tensor) -> None:
    check = niwaki.check(model, method.plan(), x)
    assert check.holds and check.distance == 0


SMALLER = niwaki.ShrinkPolicy(cost=0.01)
WITH_AND_WITHOUT = [(hesso, False), (hesso, SMALLER), (ato, SMALLER)]


@pytest.mark.parametrize(("build", "shrink"), WITH_AND_WITHOUT)
def test_hugging_face_trainer_and_its_checkpoints(build: Attach, shrink: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    load()
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 32, (12,), generator=generator) for _ in range(128)]

    def loss_fn(model: nn.Module, tokens: Tensor) -> Tensor:
        found: Tensor = model(input_ids=tokens, labels=tokens).loss
        return found

    def run(name: str, resume: Path | None) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        model = LlamaForCausalLM(config)
        arguments = TrainingArguments(
            str(tmp_path / name),
            per_device_train_batch_size=4,
            learning_rate=0.01,
            max_steps=30,
            save_steps=15,
            logging_steps=10,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=[{"input_ids": text, "labels": text} for text in texts])
        space = niwaki.search_space(model, {"input_ids": texts[0][None]})
        held_out = list(torch.stack(texts[:8]).split(4))
        method = build(space, trainer.create_optimizer(), niwaki.Budget(params=0.6), loss_fn, held_out, shrink)
        trainer.add_callback(niwaki.integrations.trainer_callback(trainer, method))
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        logs = [entry for entry in trainer.state.log_history if "niwaki/step" in entry]
        assert [entry["niwaki/step"] for entry in logs] == [entry["step"] for entry in logs] == [10, 20, 30]
        assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [10, 20, 30]
        assert logs[0]["niwaki/params_left"] > 0.6 >= logs[-1]["niwaki/params_left"]
        return model, method

    model, method = run("whole", None)
    assert method.step == 30
    assert set(method.log("")) == {"step", "macs_left", "params_left", "units_marked", "units_zero"}
    zero_and_exact(model, method, texts[0][None])
    shutil.copytree(tmp_path / "whole" / "checkpoint-15", tmp_path / "again" / "checkpoint-15")
    again, resumed = run("again", tmp_path / "again" / "checkpoint-15")
    assert resumed.step == 30 and resumed.plan().kept == method.plan().kept
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))


class Answering(nn.Module):
    """What Hugging Face's Trainer takes: a network that returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(x)
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


def test_hugging_face_trainer_that_logs_once_an_epoch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    load()
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model, data = Answering(), [{"x": torch.randn(4), "labels": torch.tensor(number % 3)} for number in range(32)]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        num_train_epochs=3,
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    space = niwaki.search_space(model, {"x": torch.randn(1, 4)})
    method = niwaki.HESSO(space, trainer.create_optimizer(), niwaki.Budget(params=0.6), niwaki.Schedule(2, 20, 3))
    trainer.add_callback(niwaki.integrations.trainer_callback(trainer, method))
    trainer.train()
    for what in ("niwaki/step", "loss"):
        assert [entry["step"] for entry in trainer.state.log_history if what in entry] == [8, 16, 24], what


@pytest.mark.parametrize(("build", "precision"), [(hesso, "no"), (hesso, "bf16"), (ato, "no"), (ato, "bf16")])
def test_accelerate_with_accumulated_gradients(build: Attach, precision: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # one precision per process otherwise
    model, (x, y) = network(), images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    held_out = [(x[:8], y[:8])]
    method = build(niwaki.search_space(model, x[:1]), optimizer, niwaki.Budget(macs=0.5), labelled_loss, held_out)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    wrapped, stepper, batches = accelerator.prepare(model, optimizer, batches)
    for _ in range(8):
        for images_, labels in batches:
            with accelerator.accumulate(wrapped):
                accelerator.backward(nn.functional.cross_entropy(wrapped(images_), labels))
                stepper.step()
                stepper.zero_grad()
    assert method.step == 32  # of 64 batches
    zero_and_exact(accelerator.unwrap_model(wrapped), method, x[:1])
    accelerator.save_state(str(tmp_path))
    accelerator.load_state(str(tmp_path))
    assert method.step == 32


def test_accelerate_resumes_a_model_that_shrank(tmp_path: Path) -> None:
    """It loads the model first, whose weights wait for the optimizer's state."""
    accelerate = pytest.importorskip("accelerate")

    def run(first: int, last: int) -> tuple[nn.Module, Any]:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        model, (x, y) = network(), images()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        space, shrink = niwaki.search_space(model, x[:1]), niwaki.ShrinkPolicy(cost=0.01)
        method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), SCHEDULE, shrink=shrink)
        accelerator = accelerate.Accelerator(cpu=True)
        wrapped, stepper = accelerator.prepare(model, optimizer)
        if first:
            accelerator.load_state(str(tmp_path))
        for step in range(first, last):
            stepper.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(wrapped(x.roll(step, 0)), y.roll(step)))
            stepper.step()
            if step == 19 and not first:
                accelerator.save_state(str(tmp_path))
        return model, method

    model, method = run(0, 32)
    again, resumed = run(20, 32)
    assert resumed.plan().kept == method.plan().kept
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in network().parameters())
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("build", "shrink"), WITH_AND_WITHOUT)
def test_lightning(build: Attach, shrink: Any, tmp_path: Path) -> None:
    load()
    lightning = pytest.importorskip("lightning")
    x, y = images()

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor) -> Any:
            return self.network(x)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def setup(self, stage: str) -> None:
            self.to(self.trainer.strategy.root_device)
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
            space = niwaki.search_space(self, x[:1])
            budget, held_out = niwaki.Budget(macs=0.5), [(x[:8], y[:8])]
            self.method = build(space, self.optimizer, budget, labelled_loss, held_out, shrink)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    def fit(steps: int, resume: Path | None = None) -> tuple[Any, Any]:
        torch.manual_seed(0)
        module = Module()
        silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        checkpoints = {"enable_checkpointing": False, "default_root_dir": tmp_path}
        log = niwaki.integrations.lightning_callback(lambda: module.method)
        trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", callbacks=[log], **silent, **checkpoints)
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
        trainer.fit(module, batches, ckpt_path=resume)
        assert trainer.callback_metrics["niwaki/step"] == steps
        return module, trainer

    module, _ = fit(32)
    assert module.method.step == 32
    zero_and_exact(module, module.method, x[:1])
    file = tmp_path / "half.ckpt"
    fit(16)[1].save_checkpoint(file)
    resumed, _ = fit(32, file)
    assert resumed.method.step == 32 and resumed.method.done
    zero_and_exact(resumed, resumed.method, x[:1])
    assert not shrink or next(resumed.parameters()).shape[0] < 16


def trained(rank: int, name: str, wrap: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, Any]:
    """On the half of the images that is this process's."""
    erase = not erasing().get(name, True)
    model, (x, y) = Branches() if erase else network(), images()
    x, y = x[rank::2], y[rank::2]
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    space = niwaki.search_space(model, x[:1], erase=erase)
    batch = x[:8], y[:8]

    def loss() -> Tensor:
        return nn.functional.cross_entropy(wrapped(batch[0]), batch[1])

    training = Training(
        *(space, optimizer, niwaki.Budget(macs=0.5), SCHEDULE, loss, False, erase),
        loss_fn=lambda model, held: nn.functional.cross_entropy(model(held[0]), held[1]),
        held_out=[(x[8:16], y[8:16])],
    )
    method = attach(name, training)
    for step in range(30):
        start = step * 8 % len(x)
        batch = x[start : start + 8], y[start : start + 8]
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return model, method


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    found = {}
    for name in methods():
        model, method = trained(rank, name, nn.parallel.DistributedDataParallel)
        zero_and_exact(model, method, images(1)[0])
        found[f"{name} keeps"] = np.array([str(method.plan().kept)])
        found[name] = np.concatenate([parameter.detach().numpy().reshape(-1) for parameter in model.parameters()])
    np.savez(f"{folder}/{rank}.npz", **found)


def test_processes_that_share_gradients_remove_the_same_units(tmp_path: Path) -> None:
    side_by_side(work, tmp_path)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert set(first) == {word for name in methods() for word in (name, f"{name} keeps")}
    assert all(np.array_equal(first[name], second[name]) for name in first)
