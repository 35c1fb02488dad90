"""Passes that halt at layers, and the norms that take up a shift."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from niwaki.errors import TraceError
from niwaki.repair.norms_behind import NormsBehind
from niwaki.repair.passes import Halting, Pass, closing_all


def test_a_work_halts_at_each_value_and_is_ended_where_it_stands() -> None:
    done: list[int] = []

    def work(say: object) -> None:
        try:
            for number in range(5):
                try:
                    say(number)  # type: ignore[operator]
                except Exception:  # noqa: BLE001 - as a network's own code may
                    done.append(-1)
                done.append(number)
        finally:
            done.append(100)

    before = threading.active_count()
    halting: Halting[int] = Halting(work)
    assert done == []
    assert (next(halting), done) == (0, [])
    assert (next(halting), done) == (1, [0])
    halting.close()
    halting.close()
    assert done == [0, 100] and list(halting) == [] and threading.active_count() == before


def test_what_a_work_raises_is_raised_where_the_next_value_is_asked_for() -> None:
    def work(say: object) -> None:
        say(1)  # type: ignore[operator]
        raise RuntimeError("no more")

    halting: Halting[int] = Halting(work)
    assert next(halting) == 1
    with pytest.raises(RuntimeError, match="no more"):
        next(halting)
    assert list(halting) == []


def test_code_that_catches_everything_is_ended_too() -> None:
    done: list[int] = []

    def work(say: object) -> None:
        for number in range(3):
            try:
                say(number)  # type: ignore[operator]
            except:  # noqa: E722 - as a network's own code may
                done.append(number)

    halting: Halting[int] = Halting(work)
    next(halting)
    ended = threading.Thread(target=halting.close, daemon=True)
    ended.start()
    ended.join(10)
    assert not ended.is_alive() and done == [0, 1, 2]


def test_an_interruption_while_a_work_computes_ends_it_at_its_next_halt() -> None:
    go = threading.Event()

    def work(say: object) -> None:
        go.wait()
        say(1)  # type: ignore[operator]

    halting: Halting[int] = Halting(work)
    halting._said.put(interrupted)  # what the wait for the next value meets
    with pytest.raises(KeyboardInterrupt):
        next(halting)
    go.set()
    ended = threading.Thread(target=halting.close, daemon=True)
    ended.start()
    ended.join(10)
    assert not ended.is_alive()


def interrupted() -> int:
    raise KeyboardInterrupt


def output(args: tuple[Tensor, ...], kwargs: dict[str, Tensor], result: Tensor) -> tuple[Tensor, ...]:
    return (result,)


def argument(args: tuple[Tensor, ...], kwargs: dict[str, Tensor], result: None) -> tuple[Tensor, ...]:
    return (args[0] if args else kwargs["input"],)


def test_passes_run_under_the_autocast_of_the_caller() -> None:
    net, x = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.randn(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        one = Pass(net, {"1": output}, x, None, 1, after=True)
    with closing_all([one]):
        assert one.take("1", 1)[0][0].dtype is torch.bfloat16


class Noting(nn.Module):
    """Its code remembers the input on the module, across a call of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.noted = x
        y = self.first(input=x).relu_()
        result: Tensor = self.second(y) + self.noted
        return result


def test_passes_advance_together_without_a_mix_of_their_notes() -> None:
    torch.manual_seed(0)
    net, batches = Noting(), [torch.randn(4, 2), torch.randn(5, 2)]
    passes = [Pass(net, {"second": argument, "first": argument}, x, None, 1, after=False) for x in batches]
    with closing_all(passes):
        assert [torch.equal(one.take("first", 1)[0][0], x) for one, x in zip(passes, batches, strict=True)] == [
            True
        ] * 2
        hidden = [one.take("second", 1)[0][0] for one in passes]
        for y, x in zip(hidden, batches, strict=True):
            assert torch.equal(y, net.first(x).relu())
        with pytest.raises(ValueError, match="it does not read the same positions in the cut network"):
            passes[0].take("second", 1)
    after = Pass(net, {"second": output, "first": output}, batches[0], None, 1, after=True)
    with closing_all([after]):
        assert torch.equal(after.take("second", 1)[0][0], net.second(hidden[0]))  # passes by the first
        assert torch.equal(after.take("first", 1)[0][0], net.first(batches[0]))  # before relu_ wrote to it
    wrong = Pass(net, {"first": argument}, torch.randn(4, 7), None, 3, after=False)
    with closing_all([wrong]), pytest.raises(TraceError, match="does not run on batch 3"):
        wrong.take("second", 1)
    assert not hasattr(net, "noted")


class Convolutions(nn.Module):
    """Norms behind convolutions: alone, beside another reader, of two convolutions, of a view, behind an addition."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("alone", "read_twice", "shared_a", "shared_b", "viewed", "added", "bare", "twice"):
            self.add_module(name, nn.Conv2d(3, 3, 1, bias=False))
            self.add_module(f"{name}_norm", nn.BatchNorm2d(3))
        self.returned, self.returned_norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.read_twice(x)
        total = self.alone_norm(self.alone(x)) + self.read_twice_norm(y) + y
        total = total + self.shared_a_norm(self.shared_a(x)) + self.shared_a_norm(self.shared_b(x))
        total = total + self.viewed_norm(self.viewed(x).flip(1).view(-1, 3, 2, 2))
        total = total + self.added_norm(self.added(x) + 1) + self.bare(x)
        for step in range(2):
            total = total + self.twice_norm(self.twice(x + step))
        seen = self.returned(x)
        return total + self.returned_norm(seen), {"seen": seen}


def test_only_a_norm_that_alone_reads_a_layer_and_nothing_else_is_behind_it() -> None:
    net = Convolutions().eval()
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    watch = NormsBehind(net, layers)  # type: ignore[arg-type]
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, args, output, name=name: watch.note(name, output))
    net.register_forward_hook(lambda _, args, result: watch.returned(result))
    for _ in range(2):
        with watch, torch.no_grad():
            net(torch.randn(2, 3, 2, 2))
        watch.forget()
    assert watch.found() == {"alone": "alone_norm", "twice": "twice_norm"}
    total = torch.randn(3)
    with torch.no_grad():
        x = torch.randn(2, 3, 2, 2)
        before, _ = net(x)
        layers["alone"].register_forward_hook(lambda _, args, output: output + total[:, None, None])
        net.alone_norm.running_mean += total
        assert torch.allclose(net(x)[0], before, atol=1e-5)
