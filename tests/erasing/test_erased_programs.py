"""Plans with erased structures: what they say, cost and cut, alone and beside narrower layers; files, and errors."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.compose import composed, difference
from niwaki.core.edits import Erase
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.core.space import SearchSpace
from niwaki.errors import FileFormatError, PlanError
from niwaki.program.entry import program_of
from niwaki.program.nodes import memories
from niwaki.surgery.history import plan_of
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import randomised

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Branches(nn.Module):
    """Residual branches, one inside of another, additions in place, and a norm whose buffers go with it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.outer, self.inner, self.back = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.norm, self.other = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.served = nn.Conv2d(8, 8, 1)  # by it two branches are served, and nothing else
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.outer(x).relu_()
        y = self.back(y + self.inner(y).relu())
        y += x
        y = y.relu_()
        z = self.norm(self.other(y))
        z += y
        both = self.served(x).sigmoid()
        z = z + self.left(both)
        z = z + self.right(both)
        result: Tensor = self.head(z.relu_().mean((2, 3)))
        return result


def space_of(model: nn.Module, **more: bool) -> SearchSpace:
    return niwaki.search_space(model, X, as_graph=True, erase=True, **more)


def choice(space: SearchSpace, names: Collection[str], width: int = 0) -> np.ndarray:
    """Without the structures of these names, and ``width`` units of each group."""
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.structure is None:
            keep[group.first : group.first + width] = False
        elif space.structures[group.structure].name in names:
            keep[group.first] = False
    assert {*names} <= {one.name for one in space.structures if one.erasable}
    return keep


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomised(Branches().eval()).double()


@pytest.fixture(scope="module")
def space(model: nn.Module) -> SearchSpace:
    return space_of(model)


NAMES = ["inner", "other..norm", "left", "right"]
CHOICES = [{"inner"}, {"other..norm"}, {"left"}, {"left", "right"}, {"inner", "other..norm", "right"}, set(NAMES)]


def test_structures_are_the_last_groups(space: SearchSpace) -> None:
    whole = [group for group in space.groups if group.structure is not None]
    assert space.groups[-len(whole) :] == tuple(whole) and space.width_groups == space.groups[: -len(whole)]
    for group in whole:
        one = space.structures[group.structure or 0]
        assert (one.erasable, group.units) == (True, 1)
        assert {piece.tensor for piece in group.slices} == set(one.producers)


def test_widths_are_those_of_a_space_without_structures(model: nn.Module, space: SearchSpace) -> None:
    bare = niwaki.search_space(model, X, as_graph=True)
    assert [(g.name, g.units, len(g.slices)) for g in bare.groups] == [
        (g.name, g.units, len(g.slices)) for g in space.width_groups
    ]
    assert (bare.coverage, bare.cost(), bare.pins) == (space.coverage, space.cost(), space.pins)
    budget = niwaki.Budget(macs=0.5)
    plans = [niwaki.choose(one, niwaki.score(one, "magnitude"), budget) for one in (bare, space)]
    assert {name: tuple(plans[1].kept[name]) for name in plans[0].kept} == {
        name: tuple(kept) for name, kept in plans[0].kept.items()
    }


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize("names", CHOICES, ids=lambda names: " ".join(sorted(names)))
def test_a_cut_program_computes_what_the_zeroed_one_does(
    model: nn.Module, space: SearchSpace, names: set[str], width: int
) -> None:
    plan = Plan.from_json(space.plan(choice(space, names, width)).to_json())
    small = niwaki.cut(model, plan, as_graph=True, example_inputs=X)
    dense = zeroed(program_of(model, ((X,), {}), True), plan)
    assert torch.allclose(small.module()(X), dense(X), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model(X), dense(X), atol=1e-3)
    assert sum(p.numel() for p in small.parameters()) == space.cost(plan).params
    found = {name: tuple(tensor.shape) for name, tensor in small.state_dict.items()}
    assert found == {one.name: one.shape for one in smaller_shapes(plan)}
    assert not {name.split(".")[0] for name in found} & names


def test_what_served_only_what_is_erased_goes_too(model: nn.Module, space: SearchSpace) -> None:
    for names, gone in (({"left"}, False), ({"left", "right"}, True)):
        plan = space.plan(choice(space, names))
        small = niwaki.cut(model, plan, as_graph=True, example_inputs=X)
        assert gone == ("served.weight" not in small.state_dict)
        left, cost = niwaki.search_space(small).cost(), space.cost(plan)
        assert (left.params, left.macs, left.memory) == (cost.params, cost.macs, cost.memory)
    assert {"norm.weight", "norm.running_mean", "other.bias"}.isdisjoint(
        one.name for one in smaller_shapes(space.plan(choice(space, {"other..norm"})))
    )


def test_costs_have_an_axis_for_every_structure(space: SearchSpace) -> None:
    """Of terms and of the derivatives that selection uses."""
    for group in space.groups:
        if group.structure is not None:
            keep = choice(space, {space.structures[group.structure].name})
            saved = space.cost().macs - space.cost_of(keep).macs
            assert saved == space.structures[group.structure].macs > 0
            price = space.cost_model.price(np.ones(space.num_units), "macs")[group.first]
            assert price == pytest.approx(saved)
            assert space.cost().activations >= space.cost_of(keep).activations > 0


def test_gradients(model: nn.Module, space: SearchSpace) -> None:
    plan = space.plan(choice(space, {"other..norm", "inner"}, 2))
    small = niwaki.cut(model, plan, as_graph=True, example_inputs=X).module()
    dense = zeroed(program_of(model, ((X,), {}), True), plan)
    for network in (small, dense):
        network(X).square().sum().backward()
    expected = dict(dense.named_parameters())
    for name, parameter in small.named_parameters():
        assert torch.allclose(parameter.grad, plan.change_of(name).of_gradient(expected[name].grad), atol=1e-8)


def test_files(model: nn.Module, space: SearchSpace, tmp_path: Path) -> None:
    plan = space.plan(choice(space, {"other..norm"}, 1))
    small = niwaki.cut(model, plan, as_graph=True, example_inputs=X)
    niwaki.save(small, tmp_path / "out")
    assert torch.equal(niwaki.load_program(tmp_path / "out").module()(X), small.module()(X))
    program = torch.export.export(model, (X,))
    assert "Exact" in str(niwaki.check(program, plan, X))
    with pytest.raises(FileFormatError, match="erases other..norm from an exported program, and this is a"):
        niwaki.load(Branches().double(), tmp_path / "out")


def test_one_after_the_other(model: nn.Module, space: SearchSpace) -> None:
    """A cut program is analysed and cut again: together that is one plan for the dense one."""
    first = space.plan(choice(space, {"inner"}, 1))
    small = niwaki.cut(model, first, as_graph=True, example_inputs=X)
    again = niwaki.search_space(small, erase=True)
    later = again.plan(choice(again, {"other..norm", "right"}, 1))
    both = composed(first, later)
    at_once = niwaki.cut(model, both, as_graph=True, example_inputs=X)
    assert torch.allclose(at_once.module()(X), niwaki.cut(small, later).module()(X))
    assert [one.structure for one in both.edits_of(Erase)[0].operands] == ["inner", "other..norm", "right"]
    assert tensor_shapes(at_once.module()) == smaller_shapes(both)
    assert difference(first, both).edits_of(Erase)[0].operands == later.edits_of(Erase)[0].operands
    with pytest.raises(PlanError, match="keeps the structure 'inner', which has left this network already"):
        difference(space.plan(choice(space, {"inner"})), space.plan(choice(space, {"right"})))


def test_a_cut_program_knows_what_has_been_done_to_it(model: nn.Module, space: SearchSpace) -> None:
    """A later plan for the dense program is one for the cut one, too; and what was done in a row is remembered."""
    first = space.plan(choice(space, {"inner"}, 1))
    whole = space.plan(choice(space, {"inner", "right"}, 2))
    small = niwaki.cut(model, first, as_graph=True, example_inputs=X)
    at_once = niwaki.cut(model, whole, as_graph=True, example_inputs=X)
    assert torch.allclose(niwaki.cut(small, whole).module()(X), at_once.module()(X))
    assert niwaki.check(small, whole, X).holds
    again = niwaki.search_space(small, erase=True)
    last = niwaki.cut(small, again.plan(choice(again, {"right"}, 1)))
    done = plan_of(last)
    assert done is not None and tensor_shapes(last.module()) == smaller_shapes(done)
    assert done.structure == first.structure
    with pytest.raises(PlanError, match="The plan keeps 7 positions of 'inner.weight'.* that have left this model"):
        niwaki.cut(small, space.plan(choice(space, {"right"}, 1)))


@pytest.mark.parametrize("wrong", ["1.5", '"1"', "true"])
def test_positions_in_a_file_are_whole_numbers(space: SearchSpace, wrong: str) -> None:
    plan = space.plan(choice(space, {"left"}, 1))
    text = plan.to_json()
    data = json.loads(text)
    (erase,) = [edit for edit in data["edits"] if edit["edit"] == Erase.kind]
    name, node, position, gated = erase["operands"][0]
    erase["operands"][0] = [name, node, json.loads(wrong), gated]
    with pytest.raises(PlanError, match="The text is not a niwaki plan: TypeError: .* is no whole number"):
        Plan.from_json(json.dumps(data))
    data = json.loads(text)
    next(edit for edit in data["edits"] if edit["edit"] == "keep")["kept"] = [json.loads(wrong)]
    with pytest.raises(PlanError, match="The text is not a niwaki plan: TypeError: positions are not whole numbers"):
        Plan.from_json(json.dumps(data))


def test_tensors_that_a_file_forgets(model: nn.Module, space: SearchSpace) -> None:
    plan = space.plan(choice(space, {"left"}))
    data = json.loads(plan.to_json())
    (erase,) = [edit for edit in data["edits"] if edit["edit"] == Erase.kind]
    erase["tensors"].remove("left.weight")
    with pytest.raises(PlanError, match="The plan erases all that reads 'left.weight', and keeps it. It has been"):
        niwaki.cut(model, Plan.from_json(json.dumps(data)), as_graph=True, example_inputs=X)


def test_a_plan_says_what_it_erases(space: SearchSpace) -> None:
    text = str(space.plan(choice(space, {"other..norm", "left"})))
    assert "  other..norm (whole): is erased" in text and "  erase: other..norm, left" in text


def test_a_structure_takes_along_what_is_inside(space: SearchSpace) -> None:
    """And nothing else goes."""
    plan = space.plan(choice(space, {"other..norm"}))
    assert all(
        len(kept) == (0 if name == "other..norm (whole)" else plan.units[name]) for name, kept in plan.kept.items()
    )
    assert space.keep_of(plan).tolist() == choice(space, {"other..norm"}).tolist()


def test_what_is_left_is_analysed_anew(model: nn.Module, space: SearchSpace) -> None:
    plan = space.plan(choice(space, {"right"}))
    with pytest.raises(PlanError, match="The plan erases 'right', and which structures can be erased beside it is"):
        niwaki.reindex(space, plan, shrunk=False)
    narrower = niwaki.reindex(space, space.plan(choice(space, set(), 2)), shrunk=False)
    assert [g.units for g in narrower.groups] == [g.units - 2 * (g.structure is None) for g in space.groups]


class Chain(nn.Module):
    """Either branch can go, not both: the output would no longer follow from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.a(x).relu() + self.b(x).relu())
        return result


def test_errors(space: SearchSpace) -> None:
    x = torch.randn(2, 4)
    chain = niwaki.search_space(Chain(), x, as_graph=True, erase=True)
    with pytest.raises(PlanError, match=r"^b cannot be erased beside a: nothing would be left to join\. Keep it, or "):
        chain.plan(choice(chain, {"a", "b"}))
    plan = chain.plan(choice(chain, {"a"}))
    with pytest.raises(PlanError, match="The plan is for another network: it expects a tensor 'a.bias'"):
        niwaki.cut(nn.Linear(4, 2), plan, as_graph=True, example_inputs=x)
    other = Chain()
    other.forward = lambda x: other.head(other.a(x) * other.b(x))  # type: ignore[method-assign]
    with pytest.raises(PlanError, match="it erases 'a', operand 0 of the node 'add', and its graph has no such node"):
        niwaki.cut(other, plan, as_graph=True, example_inputs=x)
    with pytest.raises(PlanError, match="changes numbers of an exported program only. Cut with as_graph=True"):
        niwaki.cut(Chain(), plan)
    nothing = niwaki.search_space(nn.Linear(4, 2), x, as_graph=True, erase=True)
    assert nothing.structures == () and nothing.groups == ()


class Written(nn.Module):
    """The result of an addition is written to, and what was added is read elsewhere."""

    def __init__(self, in_place: bool, named: bool) -> None:
        super().__init__()
        self.stem, self.branch, self.side = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.head, self.in_place, self.named = nn.Linear(6, 2), in_place, named

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.branch(x)
        if self.in_place:
            z = y.add_(x)
            z = y if self.named else z
        else:
            z = y + x
        result: Tensor = self.head(z.relu_()) + self.side(x)
        return result


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_written_to_is_a_copy(in_place: bool, named: bool) -> None:
    """Else the activation in place would change what the other reader sees."""
    x = torch.randn(3, 4, dtype=torch.float64)
    model = randomised(Written(in_place, named).eval()).double()
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    plan = space.plan(choice(space, {"branch"}))
    small = niwaki.cut(model, plan, as_graph=True, example_inputs=x).module()
    expected = model.head(model.stem(x).relu()) + model.side(model.stem(x))
    assert torch.allclose(small(x), expected)


class Pools(nn.Module):
    """Terms that no parameter makes: a pooled picture, and a rescaled one that is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.pool, self.head = nn.AvgPool2d(3, 1, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.branch(x) + self.pool(x)
        y = x * 0.5
        y += x
        result: Tensor = self.head(y.relu_().mean((2, 3)))
        return result


class WrittenInVain(nn.Module):
    """What is added in place is read by one branch only, after the stream itself has been read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stays, self.added, self.reads = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        early = self.stays(y)
        y += self.added(y)
        return early + self.reads(y)  # type: ignore[no-any-return]


def test_what_is_written_and_not_read_afterwards_goes() -> None:
    """The stream lives, and its memory with it; what wrote to that last served only the branch."""
    model, x = WrittenInVain().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    keep = np.ones(space.num_units, dtype=bool)
    (around,) = (one.name for one in space.structures if {"added.weight", "reads.weight"} <= {*one.parameters})
    for group in space.groups:
        if group.structure is not None and space.structures[group.structure].name == around:
            keep[group.first] = False
    plan = space.plan(keep)
    small = niwaki.cut(space.model, plan)
    assert {name.split(".")[0] for name, _ in small.named_parameters()} == {"stem", "stays"}
    assert niwaki.check(model, plan, x, as_graph=True).holds


class WrittenThroughAView(nn.Module):
    """What a view writes to the stream is read from the stream only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y[:, :2].mul_(3.0)
        return self.head(y + self.branch(y))  # type: ignore[no-any-return]


def test_what_is_written_and_read_afterwards_stays() -> None:
    model, x = WrittenThroughAView().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    small = niwaki.cut(space.model, space.plan(choice(space, {"branch"})))
    y = model.stem(x)
    assert torch.allclose(small(x), model.head(y * torch.tensor([3.0, 3.0, 1.0, 1.0]).double()))


def test_operators_without_parameters_have_a_gate() -> None:
    """The reference is the dense network with zeros in the place of their results."""
    model = randomised(Pools().eval()).double()
    space = niwaki.search_space(model, X, as_graph=True, erase=True)
    whole = {one.name: one for one in space.structures}
    pool, half = (next(name for name, one in whole.items() if not one.params and key in name) for key in ("pool", "mo"))
    stem, branch = model.stem(X), model.branch(model.stem(X))
    expected = {
        (pool,): 1.5 * branch,
        (half,): branch + model.pool(stem),
        (pool, half): branch,
        ("branch", half): model.pool(stem),
    }
    for names, kept in expected.items():
        plan = Plan.from_json(space.plan(choice(space, names)).to_json())
        dense = zeroed(program_of(model, ((X,), {}), True), plan)
        small = niwaki.cut(model, plan, as_graph=True, example_inputs=X).module()
        by_hand = model.head(kept.relu().mean((2, 3)))
        assert torch.allclose(dense(X), by_hand) and torch.allclose(small(X), by_hand)
    masked = niwaki.check(torch.export.export(model, (X,)), plan, X)
    assert "Exact" in str(masked)
    scores = niwaki.score(space, "average_magnitude")
    assert np.isfinite(np.asarray(scores.values)).all()
    assert niwaki.choose(space, scores, niwaki.Budget(macs=0.5)).edits_of(Erase) == ()


class Residual(nn.Module):
    """Blocks whose additions write in place, as torchvision's do."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = block(x)
            y += x
            x = y.relu_()
        return x


def test_memory_is_followed_once_per_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not once per structure: the graph is run for it."""
    runs: list[object] = []

    def counted(module: torch.fx.GraphModule) -> dict[torch.fx.Node, frozenset[int]]:
        runs.append(module)
        return memories(module)

    monkeypatch.setattr("niwaki.program.memory.memories", counted)
    model, x = Residual(6).double(), torch.randn(2, 4, dtype=torch.float64)
    found = niwaki.search_space(model, x, as_graph=True, erase=True)
    assert sum(one.erasable for one in found.structures) == 6 and len(runs) == 1
    keep = np.ones(found.num_units, dtype=bool)
    keep[1::2] = False
    small = niwaki.cut(found.model.source, found.plan(keep))  # type: ignore[call-overload]
    assert len(runs) <= 3
    zero = zeroed(program_of(model, ((x,), {}), True), found.plan(keep))
    assert torch.allclose(small.module()(x), zero(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = x + self.down(self.up(x).relu())
        return result


def test_tied_weights_go_by_all_their_names() -> None:
    x = torch.randn(2, 4)
    found = niwaki.search_space(Tied(), x, as_graph=True, erase=True)
    small = niwaki.cut(Tied(), found.plan(choice(found, {"up..down"})), as_graph=True, example_inputs=x)
    assert set(small.state_dict) == {"stem.weight", "stem.bias"}
    assert niwaki.search_space(small, erase=True).structures == ()


class Counting(nn.Module):
    """A branch that keeps a sum of what it computes."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.branch(x)
        self.total.add_(y.sum().detach())
        return x + y


def test_what_is_written_to_a_buffer_goes_with_what_it_follows_from() -> None:
    """In a decomposed program the new value of a buffer is one of its outputs."""
    x, model = torch.randn(2, 4), Counting()
    program = torch.export.export(model, (x,)).run_decompositions({})
    found = niwaki.search_space(program, erase=True)
    small = niwaki.cut(program, found.plan(choice(found, {"branch"})))
    assert len(program.graph_signature.output_specs) == 2 and len(small.graph_signature.output_specs) == 1
    assert torch.allclose(small.module()(x), model.stem(x))


def test_narrower_first_and_erased_then() -> None:
    """What a first plan did to sizes of the program stays where a later one erases."""
    torch.manual_seed(0)
    model, x = Reshaped().double(), torch.randn(3, 4, dtype=torch.float64)
    dense = niwaki.search_space(model, x, as_graph=True, erase=True)
    first = dense.plan(choice(dense, set(), 1))
    small = niwaki.cut(model, first, as_graph=True, example_inputs=x)
    again = niwaki.search_space(small, erase=True)
    later = again.plan(choice(again, {"branch"}))
    both = Plan.from_json(composed(first, later).to_json())
    at_once = niwaki.cut(model, both, as_graph=True, example_inputs=x)
    assert torch.allclose(at_once.module()(x), niwaki.cut(small, later).module()(x))
    assert torch.allclose(niwaki.cut(small, difference(first, both)).module()(x), at_once.module()(x))


class Reshaped(nn.Module):
    """Heads whose number is a number of the program, one branch around another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.branch = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.back, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.up(x).view(3, 2, 3)
        y = (y + self.branch(x).view(3, 2, 3)).reshape(3, 6)
        result: Tensor = self.head(x + self.back(y))
        return result


def test_what_is_inside_goes_first_and_what_is_around_it_then() -> None:
    """Two plans for the dense network: the later one erases what the first left of a structure."""
    model, x = Reshaped().double(), torch.randn(3, 4, dtype=torch.float64)
    dense = niwaki.search_space(model, x, as_graph=True, erase=True)
    inner = next(one for one in dense.structures if one.inside is not None and one.erasable)
    outer = dense.structures[inner.inside or 0]
    first, whole = dense.plan(choice(dense, {inner.name})), dense.plan(choice(dense, {outer.name}))
    small = niwaki.cut(model, first, as_graph=True, example_inputs=x)
    at_once = niwaki.cut(model, whole, as_graph=True, example_inputs=x)
    smaller = niwaki.cut(small, difference(first, whole))
    assert set(smaller.state_dict) == set(at_once.state_dict)
    assert torch.allclose(smaller.module()(x), at_once.module()(x))
