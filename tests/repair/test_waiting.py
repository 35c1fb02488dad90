"""What passes hold while they stand still: in memory up to a limit, and beyond it in a file."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import Iterator

import pytest
import torch
from remembering import Remembering, last_half
from torch import Tensor, nn

import niwaki
from niwaki.repair import compensate as module
from niwaki.repair import waiting
from niwaki.repair.passes import Pass, closing_all
from niwaki.repair.waiting import Made, Store

CACHE: list[Tensor] = []


@pytest.fixture
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LEAST", 1)


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Store]]:
    """Those of `niwaki.compensate`, with a limit of no bytes."""
    made: list[Store] = []

    def nothing(limit: int) -> Store:
        assert limit > 0
        made.append(Store(0))
        return made[-1]

    monkeypatch.setattr(module, "Store", nothing)
    yield made


def table() -> Tensor:
    return torch.linspace(1, 2, 4).repeat(3, 1)


class Caching(nn.Module):
    """The first pass makes a table for all later ones; a part of a tensor is held, and the whole is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        if not CACHE:
            CACHE.append(table())
        part = torch.cat([x, x * CACHE[0][1], x], 1)[:, 1:9]
        return self.third(self.second(self.first(x).relu()).relu()) + part  # type: ignore[no-any-return]


@pytest.mark.usefixtures("of_any_size")
@pytest.mark.parametrize("net", [Remembering("local"), Remembering("global"), Caching()], ids=["local", "mixed", "one"])
def test_what_waits_in_a_file_changes_no_bit(
    net: nn.Module, stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    CACHE[:] = [table()]
    torch.manual_seed(0)
    batches = list(torch.randn(4, 64, 4))
    space, runs = niwaki.search_space(net.eval(), batches[0]), 0
    plan = last_half(space)

    def forward(model: nn.Module, batch: Tensor) -> None:
        nonlocal runs
        runs += 1
        if runs == 5:  # the first of those that halt
            CACHE.clear()
        model(batch)

    away = niwaki.compensate(space, plan, batches, forward=forward)
    assert stores[0].moved > 0 and runs >= 12
    assert bool(CACHE) == isinstance(net, Caching) and all(torch.equal(one, table()) for one in CACHE)
    monkeypatch.setattr(module, "Store", lambda limit: Store(10**9))
    kept = niwaki.compensate(space, plan, batches)
    assert away.layers == kept.layers and len(kept.layers) > 0
    for one, other in zip(away.model.parameters(), kept.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_store_keeps_what_there_is_room_for_and_puts_the_rest_away() -> None:
    store, made, others = Store(100_000), [Made(), Made()], []
    for one in made:
        with one:
            others.append(torch.arange(20_000.0).reshape(200, 100) + 1)
    view = others[1][3:5]
    rooms = [store.put_away(one) for one in made]
    assert rooms[0] > 0 and rooms[1] == 0
    assert others[0].untyped_storage().nbytes() == 80_000 and others[1].untyped_storage().nbytes() == 0
    for one, room in zip(made, rooms, strict=True):
        store.go_on(one, room)
    assert torch.equal(others[0], others[1]) and torch.equal(view, others[0][3:5])
    place = store._end
    assert store.put_away(made[0]) > 0 and store.put_away(made[1]) == 0
    assert store._end == place  # the place in the file is taken again
    store.close()
    assert torch.equal(others[0], others[1])  # what somebody still has


def test_memory_that_nobody_holds_is_not_put_away() -> None:
    store, made = Store(0), Made()
    with made:
        x = torch.ones(10_000)
        del x
    assert store.put_away(made) == 0 and store.moved == 0


def test_without_room_in_the_file_it_stays_in_memory_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def seek(self, place: int) -> None: ...

        def write(self, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    store, made = Store(0), Made()
    with made:
        x = torch.ones(10_000)
    with caplog.at_level(logging.WARNING, "niwaki"):
        store.put_away(made)
        store.put_away(made)
    assert torch.equal(x, torch.ones(10_000)) and len(caplog.messages) == 1
    assert "stays in memory, since the temporary file has no room for it" in caplog.messages[0]
    store.close()


class CachingTwice(Caching):
    """A layer with two calls, for which passes run of their own, while others wait."""

    def forward(self, x: Tensor) -> Tensor:
        if not CACHE:
            CACHE.append(table())
        y = self.second(self.first(x * CACHE[0][1]).relu()).relu()
        return self.third(y) + self.third(y.sin())  # type: ignore[no-any-return]


@pytest.mark.usefixtures("of_any_size")
def test_passes_of_their_own_read_what_waiting_ones_made_for_all(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    CACHE[:] = [table()]
    torch.manual_seed(0)
    net, batch = CachingTwice().eval(), torch.randn(64, 4)
    space, runs = niwaki.search_space(net, batch), 0
    plan = last_half(space)

    def forward(model: nn.Module, batch: Tensor) -> None:
        nonlocal runs
        runs += 1
        if runs == 2:  # the first of those that halt
            CACHE.clear()
        model(batch)

    away = niwaki.compensate(space, plan, [batch], forward=forward)
    assert stores[0].moved > 0
    monkeypatch.setattr(module, "Store", lambda limit: Store(10**9))
    kept = niwaki.compensate(space, plan, [batch])
    assert away.layers == kept.layers and {"second", "third"} <= set(kept.layers)


def test_what_a_pass_gives_comes_back_though_another_pass_made_it() -> None:
    store, made = Store(0), Made()
    with made:
        shared = torch.ones(64, 64 * 4)
    net = nn.Sequential(nn.Linear(256, 3))
    one = Pass(net, {"0": lambda args, kwargs, output: args}, shared, None, 1, after=False, store=store)
    with closing_all([one]):
        store.put_away(made)
        assert shared.untyped_storage().nbytes() == 0
        assert torch.equal(one.take("0", 1)[0][0], torch.ones(64, 256))
    store.close()


def test_what_has_no_bytes_of_its_own_stays_as_it_is() -> None:
    store, made = Store(0), Made()
    with made:
        meta = torch.ones(100, 100, device="meta")
        array = (torch.ones(100, 100) * 2)[50:].numpy()
        shared = (torch.ones(100, 100) * 3).share_memory_()
        zeros = torch._efficientzerotensor((100, 100))
        nested = torch.nested.nested_tensor([torch.ones(100, 80), torch.ones(50, 80)], layout=torch.jagged) * 4
        lazy = torch.ones(100, 100)
        later = torch._lazy_clone(lazy)
    store.put_away(made)
    assert meta.untyped_storage().nbytes() == zeros.untyped_storage().nbytes() == 40_000
    assert array.sum() == 10_000 and shared.sum() == 30_000 and store.moved > 0
    store.go_on(made, 0)
    assert nested.values().sum() == 48_000 and lazy.sum() == later.sum() == 10_000
    store.close()


@pytest.mark.usefixtures("of_any_size")
def test_a_pass_that_is_ended_while_its_memory_is_away_ends() -> None:
    net, store = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), Store(0)
    one = Pass(net, {"1": lambda args, kwargs, output: args}, torch.randn(4, 3), None, 1, after=False, store=store)
    with closing_all([one]):
        x = one.take("1", 1)[0][0]
        expected = x.clone()
        one.rest()
        one.rest()
        assert x.untyped_storage().nbytes() == 0
    store.close()
    assert torch.equal(x, expected)
