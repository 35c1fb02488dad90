"""New kinds of edit are made here, in one file: plans with them are cut, compared, composed, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.compose import composed, difference
from niwaki.core.edits import ModuleEdit, Place, TensorEdit, edited_by_hand, register_edit
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes, touched_tensors
from niwaki.errors import FileFormatError, PlanError
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import random_plan
from niwaki.testing.rivals import Rivals

Shape = tuple[int, ...]


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Bypass(ModuleEdit):
    """A module hands on what it is given; its tensors leave with it."""

    kind: ClassVar[str] = "bypass, a toy"

    module: str

    @property
    def place(self) -> Place:
        return self.kind, self.module

    @property
    def for_graph(self) -> bool | None:
        return False

    def check(self, plan: Plan) -> None:
        pass

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        if self.module not in modules:
            raise edited_by_hand(f"takes away a module {self.module!r}, which the model does not have")

    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        modules[""].set_submodule(self.module, nn.Identity())

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        for name in [name for name in shapes if name.startswith(f"{self.module}.")]:
            del shapes[name]

    @property
    def moved(self) -> Mapping[str, str | None]:
        return {self.module: None}

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        self.apply(modules)
        return lambda: modules[""].set_submodule(self.module, modules[self.module])

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        return first or later

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is not None and whole is None:
            raise PlanError(f"The module {first.module!r} has been taken away and cannot come back.")
        return None if first is not None else whole

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        module = name(self.module)
        return None if module is None else Bypass(module)

    def to_data(self) -> dict[str, Any]:
        return {"module": self.module}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["module"]))

    def __str__(self) -> str:
        return f"around {self.module}"


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Negate(TensorEdit):
    """A tensor changes its sign, in the cut network and in the one it is compared with."""

    kind: ClassVar[str] = "negate, a toy"

    tensor: str

    @property
    def place(self) -> Place:
        return self.kind, self.tensor

    @property
    def dims(self) -> tuple[int, ...]:
        return ()

    def check(self, plan: Plan) -> None:
        if self.tensor not in plan.dense:
            raise edited_by_hand(f"negates a tensor {self.tensor!r}, which the network does not have")

    def shape_of(self, shape: Shape) -> Shape:
        return shape

    def of(self, tensor: Tensor) -> Tensor:
        return -tensor

    def of_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.clone()

    def of_state(self, state: Tensor, dims: Mapping[int, int], power: Callable[[], int]) -> Tensor:
        return state * (-1) ** power()

    def zero_(self, tensor: Tensor) -> None:
        tensor.neg_()

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        return None if first is not None and later is not None else first or later

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        return None if first is not None and whole is not None else first or whole

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        tensor = name(self.tensor)
        return None if tensor is None else Negate(tensor)

    def to_data(self) -> dict[str, Any]:
        return {"tensor": self.tensor}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["tensor"]))

    def __str__(self) -> str:
        return f"-{self.tensor}"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        made: Tensor = self.last(h + self.block(h).relu())
        return made


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def planned() -> tuple[Net, Plan]:
    """A network, and a plan that removes units, takes away a module and negates a tensor."""
    torch.manual_seed(0)
    net = Net()
    plan = random_plan(niwaki.search_space(net, X), np.random.default_rng(0))
    gone = (edit for edit in plan.edits if not any(str(item).startswith("block") for item in edit.place))
    return net, Plan(plan.kept, plan.units, plan.shapes, (*gone, Bypass("block"), Negate("last.weight")))


def test_the_law() -> None:
    net, plan = planned()
    small = niwaki.cut(net, plan)
    assert isinstance(small.block, nn.Identity) and isinstance(net.block, nn.Linear)
    assert tensor_shapes(small) == smaller_shapes(plan)
    assert {"block.weight", "block.bias", "first.weight", "last.weight"} <= touched_tensors(plan)
    assert torch.equal(niwaki.cut(net, plan)(X), small(X)) and not torch.equal(zeroed(net, plan)(X), net(X))
    before = net(X)
    outcome = niwaki.check(net, plan, X)
    assert outcome.holds and torch.equal(net(X), before) and isinstance(net.block, nn.Linear)
    rivals = Rivals(net, plan)
    found = rivals.gradients(((X,), {}))
    assert rivals.outputs(((X,), {})).deviation < 1e-10 and found is not None and found.deviation < 1e-10


def test_files(tmp_path: Path) -> None:
    net, plan = planned()
    small = niwaki.cut(net, plan)
    niwaki.save(small, tmp_path / "out")
    loaded = niwaki.load(Net(), tmp_path / "out")
    assert torch.equal(loaded(X), small(X)) and isinstance(loaded.block, nn.Identity)
    read = Plan.from_json((tmp_path / "out/plan.json").read_text())
    assert read.edits == plan.edits and read.to_json() == plan.to_json()
    with pytest.raises(FileFormatError, match="takes away a module 'block', which the model does not have"):
        without = Net()
        without.__dict__["_modules"]["blick"] = without.__dict__["_modules"].pop("block")
        data = json.loads((tmp_path / "out/plan.json").read_text())
        data["shapes"] = [[one.name, list(one.shape)] for one in tensor_shapes(without)]
        rewritten(tmp_path / "out", data)
        niwaki.load(without, tmp_path / "out")


def test_a_file_with_a_kind_that_is_not_known_is_refused() -> None:
    _, plan = planned()
    text = plan.to_json().replace(Bypass.kind, "unheard of")
    with pytest.raises(
        PlanError, match=r"has an edit of the kind 'unheard of', and this niwaki knows .*keep, .*rescale"
    ):
        Plan.from_json(text)
    with pytest.raises(PlanError, match="Use the niwaki version that wrote it, or import the package that defines"):
        Plan.from_json(text)
    with pytest.raises(PlanError, match="is not a niwaki plan: KeyError: 'module'"):
        Plan.from_json(plan.to_json().replace('"module": "block"', '"modul": "block"'))


def test_plans_in_a_row() -> None:
    net, plan = planned()
    first = Plan(plan.kept, plan.units, plan.shapes, tuple(e for e in plan.edits if not isinstance(e, Bypass)))
    assert difference(first, plan).edits == (Bypass("block"),)
    assert composed(first, difference(first, plan)).at == plan.at
    with pytest.raises(PlanError, match="has been taken away and cannot come back"):
        difference(plan, first)
    small = niwaki.cut(net, plan)
    again = random_plan(niwaki.search_space(small, X), np.random.default_rng(1)).with_edits([Negate("last.weight")])
    smallest, whole = niwaki.cut(small, again), composed(plan, again)
    assert Negate("last.weight") not in whole.edits and Bypass("block") in whole.edits
    assert torch.allclose(niwaki.cut(net, whole)(X), smallest(X))


def test_shrinking_in_place() -> None:
    net, plan = planned()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(X).sum().backward()
    optimizer.step()
    small, momentum = niwaki.cut(net, plan), optimizer.state[net.last.weight]["momentum_buffer"].clone()
    niwaki.shrink(net, plan, optimizer)
    assert torch.equal(net(X), small(X))
    kept = torch.tensor(list(plan.tensors["last.weight"][1]))
    assert torch.equal(optimizer.state[net.last.weight]["momentum_buffer"], -momentum[:, kept])


def test_it_is_printed_and_named_nowhere_else() -> None:
    _, plan = planned()
    assert "bypass, a toy: around block" in str(plan) and "negate, a toy: -last.weight" in str(plan)
    twice = plan.with_edits([Bypass("block")])
    with pytest.raises(PlanError, match="says twice what becomes of one thing: bypass, a toy, around block"):
        twice.check_positions()
    with pytest.raises(ValueError, match="two kinds of edit have the name 'negate, a toy'"):
        register_edit(type("Other", (Negate,), {}))  # type: ignore[misc]
    root = Path(niwaki.__file__).parent
    assert not any(kind.kind in path.read_text() for path in root.rglob("*.py") for kind in (Bypass, Negate))


def rewritten(directory: Path, data: dict[str, Any]) -> None:
    from niwaki.core.plan import TensorShape, structure_hash
    from niwaki.io.format import checksum

    data["structure"] = structure_hash([TensorShape(name, tuple(shape)) for name, shape in data["shapes"]])
    data["checksum"] = checksum(data)
    (directory / "plan.json").write_text(json.dumps(data))
