"""Experts of routers are erased exactly: what is left is the network whose router logits of them are minus infinity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixtures import (
    EXPERTS,
    FAMILIES,
    WIDTH,
    Around,
    Balanced,
    Corrected,
    Expert,
    Listed,
    Literal,
    Ranked,
    Shown,
    Stacked,
    decoder,
    tokens,
)
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import EraseExperts, EraseModules, SetAttribute
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.core.space import SearchSpace
from niwaki.core.structures import Structure
from niwaki.erasing import expert_trial
from niwaki.errors import BudgetError, PlanError
from niwaki.surgery.zero import zeroed
from niwaki.testing import check_erasing
from niwaki.testing.models import randomised
from niwaki.testing.rivals import Rivals

X = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))


class Parameters(nn.Module):
    """Lists of bare parameters, and the one best expert."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.ParameterList(torch.randn(WIDTH, 5) for _ in range(EXPERTS))
        self.down = nn.ParameterList(torch.randn(5, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        out = torch.zeros_like(x)
        for number in range(len(self.up)):
            row = (chosen == number).nonzero()[:, 0]
            out[row] = torch.relu(x[row] @ self.up[number]) @ self.down[number]
        return out


class Named(Listed):
    """Experts in a dictionary, by names that are made of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({f"expert {number}": Expert() for number in range(EXPERTS)})  # type: ignore[assignment]

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        weight, chosen = self.choice(logits)
        out = torch.zeros_like(x)
        for number in range(sum(name.startswith("expert") for name in self.experts)):  # type: ignore[attr-defined]
            row, place = torch.where(chosen == number)
            made = self.experts[f"expert {number}"](x[row])  # type: ignore[index]
            out.index_add_(0, row, made * weight[row, place, None])
        return out


class Beside(Named):
    """Something else is in the dictionary, in front of the experts and behind them."""

    def __init__(self) -> None:
        super().__init__()
        before = {"scale": nn.Hardtanh(), **self.experts, "after": nn.Identity()}
        self.experts = nn.ModuleDict(before)  # type: ignore[assignment]

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.experts["after"](super().mixed(self.experts["scale"](x), logits))  # type: ignore[index, no-any-return]


HANDMADE: Mapping[str, Callable[[], nn.Module]] = {
    **{order: (lambda order=order: Listed(order)) for order in ("softmax, top-k", "normalised", "top-k, softmax")},
    "sigmoid": lambda: Listed("sigmoid"),
    "the best": lambda: Listed(k=1),
    "stacked": Stacked,
    "lists of parameters": Parameters,
    "named": Named,
    "named, beside others": Beside,
}


def experts(space: SearchSpace) -> list[Structure]:
    return [one for one in space.structures if one.router is not None]


def without(space: SearchSpace, names: Collection[str], widths: bool = False) -> Plan:
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.structure is None:
            keep[group.first] = not widths or group.units < 3
        else:
            keep[group.first] = space.structures[group.structure].name not in names
    assert len(names) == sum(one.name in names for one in space.structures)
    return space.plan(keep)


def check_exact(model: nn.Module, inputs: Any, plan: Plan) -> nn.Module:
    """The cut network, after it was compared with the masked one."""
    call = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    rivals = Rivals(randomised(copy.deepcopy(model)), plan)
    gradients = rivals.gradients(call)
    assert rivals.outputs(call).deviation < 1e-10 and gradients is not None and gradients.deviation < 1e-8
    small = niwaki.cut(model, plan)
    assert tensor_shapes(small) == smaller_shapes(plan)
    return small


@pytest.mark.parametrize("name", HANDMADE)
def test_law_on_handmade_mixtures(name: str) -> None:
    torch.manual_seed(0)
    model = Around(HANDMADE[name](), HANDMADE[name]())
    space = niwaki.search_space(model, X, erase=True)
    assert len(experts(space)) == 2 * EXPERTS and all(one.erasable for one in experts(space)), str(space)
    found = check_erasing(model, X, plans=6, least_erasable=2 * EXPERTS)
    assert found.erased > 1 and found.kept < 0.9


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"DeepseekV3"}))
def test_law_on_models_of_transformers(name: str) -> None:
    model = decoder(name)
    space = niwaki.search_space(model, tokens(), erase=True)
    assert len(experts(space)) == 8 and all(one.erasable for one in experts(space)), str(space)
    found = check_erasing(model, tokens(), plans=4, least_erasable=8)
    assert found.backward is not None and found.backward < 1e-8 and found.erased > 1


def test_the_reference_is_minus_infinity() -> None:
    """Compared with a bias of minus infinity, and with nothing of niwaki's."""
    torch.manual_seed(0)
    model = Around(Listed(), Listed("top-k, softmax")).double()
    space = niwaki.search_space(model, X.double(), erase=True)
    plan = without(space, ("layers.0.experts.1", "layers.0.experts.2", "layers.1.experts.3"))
    small, dense = niwaki.cut(model, plan), copy.deepcopy(model)
    with torch.no_grad():
        dense.layers[0].gate.bias[[1, 2]] = float("-inf")  # type: ignore[union-attr, operator]
        dense.layers[1].gate.bias[3] = float("-inf")  # type: ignore[union-attr, operator]
    x = torch.randn(64, 3).double()
    expected, found = dense(x), small(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(model(x), expected, rtol=0, atol=1e-3)
    assert torch.equal(zeroed(model, plan)(x), expected)
    for network in (small, dense):
        network(x).square().sum().backward()
    ours, theirs = small.layers[0].experts[1].up.weight.grad, dense.layers[0].experts[3].up.weight.grad  # type: ignore[union-attr, index]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)
    gate = dense.layers[0].gate.weight.grad[[0, 3]]  # type: ignore[union-attr, index]
    assert torch.allclose(small.layers[0].gate.weight.grad, gate, rtol=0, atol=1e-11)  # type: ignore[union-attr, arg-type]


def test_the_reference_of_a_router_without_bias() -> None:
    """A router of transformers, with minus infinity written into its logits by hand."""
    torch.manual_seed(0)
    model: Any = randomised(decoder("Mixtral"))
    plan = without(niwaki.search_space(model, tokens(), erase=True), ("model.layers.1.mlp.experts[2]",))
    small, dense = niwaki.cut(model, plan), copy.deepcopy(model)
    router = dense.model.layers[1].mlp.gate

    def forward(hidden: Tensor) -> Any:
        logits = nn.functional.linear(hidden.reshape(-1, 16), router.weight)
        logits[:, 2] = float("-inf")
        value, index = logits.softmax(-1).topk(2)
        return logits, value / value.sum(-1, keepdim=True), index

    router.forward = forward
    given = {"input_ids": torch.randint(0, 13, (4, 9))}
    assert torch.allclose(small(**given).logits, dense(**given).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(model(**given).logits, dense(**given).logits, rtol=0, atol=1e-3)
    assert small.model.layers[1].mlp.experts.gate_up_proj.shape[0] == small.model.layers[1].mlp.gate.num_experts == 3


class Noting(Listed):
    """A loss of all probabilities that stays on the module."""

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        self.loss = logits.softmax(-1).mean(0).square().sum() * logits.shape[-1]
        return super().mixed(x, logits)


class Limited(Listed):
    """Each expert takes so many rows, which the example does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.number = EXPERTS

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        most = max(len(X), len(x) // self.number)
        weight, chosen = self.choice(logits)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = (one[:most] for one in torch.where(chosen == number))
            out = out.index_add(0, row, expert(x[row]) * weight[row, place, None])
        return out


WHYS: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "a loss of all probabilities": (
        Balanced,
        "without 1 of 4 it returns something else than where their logits are minus infinity",
    ),
    "logits returned": (Shown, "without 1 of 4 what it returns has another shape (it may return logits)"),
    "logits used": (Ranked, "without 1 of 4 it returns something else than where their logits are minus infinity"),
    "a number in the code": (
        Literal,
        "its code fails without 1 of 4: RuntimeError: shape '[-1, 4]' is invalid for input of size 27",
    ),
    "a correction of the choice": (
        Corrected,
        "without 1 of 4 it returns something else than where their logits are minus infinity",
    ),
    "a loss that is kept": (Noting, "without 1 of 4 it leaves another 'loss' on its module"),
    "a limit on the rows": (Limited, "of a longer input it makes something else without some"),
    "all chosen": (lambda: Listed(k=EXPERTS), "its router chooses 4 of 4 at once"),
}


@pytest.mark.parametrize("name", WHYS)
def test_why_experts_stay(name: str) -> None:
    build, why = WHYS[name]
    torch.manual_seed(0)
    space = niwaki.search_space(Around(build()), X, erase=True)
    assert {one.refused for one in experts(space)} == {why} and len(experts(space)) == EXPERTS
    assert f"4 x not erasable, {why}: layers.0.experts.0" in str(space)


def test_groups_of_experts_stay() -> None:
    """Choices among groups, and corrections of choices, which an expert with no score may win."""
    found = {
        groups: experts(niwaki.search_space(decoder("DeepseekV3", n_group=groups), tokens(), erase=True))
        for groups in (1, 2)
    }
    assert all(len(found[groups]) == 8 and not any(one.erasable for one in found[groups]) for groups in found)
    assert str(found[2][0].refused).startswith("its code fails without 1 of 8: RuntimeError: shape '[-1, 2, 3]' is inv")
    assert "it returns something else than where their logits are minus infinity" in str(found[1][0].refused)


def test_random_numbers_for_each_expert() -> None:
    """A noisy choice in train mode can be compared with no other; dropout behind it can."""

    class Noisy(Listed):
        def forward(self, x: Tensor) -> Any:
            logits = self.gate(x)
            return self.mixed(x, logits + torch.randn_like(logits) if self.training else logits)

    torch.manual_seed(0)
    (why,) = {one.refused for one in experts(niwaki.search_space(Around(Noisy()), X, erase=True))}
    assert why == "without 1 of 4 it draws other random numbers, in train mode"
    model = Around(nn.Sequential(Listed(), nn.Dropout(0.3)))
    assert all(one.erasable for one in experts(niwaki.search_space(model, X, erase=True)))


def test_what_is_as_many_by_chance() -> None:
    """Layers of an expert, heads, channels behind a norm are as many as experts; or the number is somewhere else in the
    block, or a weight for each expert."""

    class Layers(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU(), nn.Identity(), nn.Linear(5, WIDTH))
                for _ in range(EXPERTS)
            )

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.project = EXPERTS, nn.Linear(WIDTH, 2 * EXPERTS)

        def forward(self, x: Tensor) -> Tensor:
            return self.project(x).view(len(x), self.heads, 2).tanh().mean((1, 2))[:, None]  # type: ignore[no-any-return]

    class Beside(Listed):
        def __init__(self, needed: bool) -> None:
            super().__init__()
            self.beside, self.needed = Heads(), needed

        def forward(self, x: Tensor) -> Any:
            logits = self.gate(x)
            if self.needed:
                logits = logits.view(-1, self.beside.heads)
                return self.mixed(x, logits)
            return self.mixed(x, logits) + self.beside(x)

    class Normed(Listed):
        def __init__(self) -> None:
            super().__init__(experts=WIDTH)
            self.shared, self.norm = Expert(), nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Any:
            return self.norm(super().forward(x) + self.shared(x))

    class Scaled(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.scaling = nn.Module()
            self.scaling.scale = nn.Parameter(torch.rand(EXPERTS))

        def choice(self, logits: Tensor) -> tuple[Tensor, Tensor]:
            weight, chosen = super().choice(logits)
            return weight * self.scaling.scale[chosen], chosen  # type: ignore[index, operator]

    torch.manual_seed(0)
    for build in (Layers, lambda: Beside(False), lambda: Beside(True), Normed, Scaled):
        model = Around(build())
        space = niwaki.search_space(model, X, erase=True)
        assert len(experts(space)) >= EXPERTS and all(one.erasable for one in experts(space)), str(space)
        small: Any = check_exact(model, X, without(space, ("layers.0.experts.2",)))
        if isinstance(build(), Beside):
            assert small.layers[0].beside.heads == EXPERTS - build().needed
        if isinstance(build(), Scaled):
            assert len(small.layers[0].scaling.scale) == EXPERTS - 1


def test_what_is_read_elsewhere_stays() -> None:
    """Outside of the block that is tried."""

    class Regular(Around):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), self.layers[0].experts[2].up.weight.square().sum()  # type: ignore[union-attr, index]

    (why,) = {one.refused for one in experts(niwaki.search_space(Regular(Listed()), X, erase=True))}
    assert why == "'layers.0.experts.2.up.weight' is read outside of 'layers.0'"


def test_code_that_counts_the_experts_of_another_module() -> None:
    """It goes on with another number, for one of two blocks that are alike."""

    class Counting(Around):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) / len(self.layers[1].experts)  # type: ignore[arg-type]

    torch.manual_seed(0)
    space = niwaki.search_space(Counting(Listed(), Listed()), X, erase=True)
    whys = {one.name: one.refused for one in experts(space)}
    assert whys["layers.0.experts.0"] is None
    assert whys["layers.1.experts.0"] == "code outside of it does something else with fewer"


class Losing(Around):
    """A loss of logits if it is asked for, with a number that counts experts, and another number that nothing reads."""

    def __init__(self, *mixtures: nn.Module) -> None:
        super().__init__(*mixtures)
        self.experts, self.depth = EXPERTS, EXPERTS

    def forward(self, x: Tensor, loss: bool = False) -> Any:
        made = super().forward(x)
        if not loss:
            return made
        return made, self.layers[0].gate(torch.tanh(self.start(x))).softmax(-1).sum() / self.experts  # type: ignore[operator]


def test_numbers_that_no_call_reads() -> None:
    """They may count experts; where a call reads them, their meaning shows."""
    torch.manual_seed(0)
    note = (
        "These numbers equal the number of experts of 'layers.0.gate.weight': experts is 4, read by Losing.forward. No "
        "example call shows what they mean, so a cut does not change them. If they count experts, set them then."
    )
    model = Losing(Listed())
    assert note in niwaki.search_space(model, X, erase=True).notes
    space = niwaki.search_space(model, [X, {"x": X, "loss": True}], erase=True)
    assert not any(one.erasable for one in experts(space)) and note not in space.notes


def test_every_example_call_is_tried() -> None:
    """Code may do something else for other inputs."""

    class Two(Listed):
        def forward(self, x: Tensor) -> Any:
            logits = self.gate(x)
            made = self.mixed(x, logits)
            return made if len(x) > 1 else made + logits.tanh().mean(-1, keepdim=True)

    torch.manual_seed(0)
    model = Around(Two())
    assert all(one.erasable for one in experts(niwaki.search_space(model, X, erase=True)))
    (why,) = {one.refused for one in experts(niwaki.search_space(model, [X, X[:1]], erase=True))}
    assert why == "without 1 of 4 it returns something else than where their logits are minus infinity"


def test_logits_that_are_recorded_are_used_elsewhere() -> None:
    space = niwaki.search_space(decoder("Mixtral", output_router_logits=True), tokens(), erase=True)
    assert {one.refused for one in experts(space)} == {
        f"what 'model.layers.{layer}.mlp' computes is used outside of it without being returned" for layer in (0, 1)
    }


def test_what_is_ignored_stays() -> None:
    space = niwaki.search_space(Around(Listed()), X, erase=True, ignored=["*.experts.1.*"])
    assert [one.refused for one in experts(space) if not one.erasable] == [
        "'layers.0.experts.1.up.weight' is ignored by the pattern '*.experts.1.*'"
    ]
    space = niwaki.search_space(Around(Listed()), X, erase=True, ignored=["*.gate.*"])
    assert not any(one.erasable for one in experts(space))


def test_none_are_listed_where_none_are_asked_for() -> None:
    assert not niwaki.search_space(Around(Listed()), X).structures
    program = niwaki.search_space(decoder("Mixtral"), tokens(), erase=True, as_graph=True)
    note = (
        "Whole experts leave the class of a model, and no exported program: 'model.layers.0.mlp.gate.weight' chooses "
        "among some here. Use as_graph=False to erase them."
    )
    assert not experts(program) and note in program.notes
    classifier = nn.Sequential(nn.Linear(3, EXPERTS), nn.Softmax(-1))
    assert not niwaki.search_space(classifier, X, erase=True).structures


def test_on_the_meta_device() -> None:
    """They are tried in a narrow copy, which gets values."""
    with torch.device("meta"):
        model = decoder("Mixtral")
    space = niwaki.search_space(model, tokens(), erase=True)
    assert sum(one.erasable for one in experts(space)) == 8
    plan = without(space, ("model.layers.0.mlp.experts[1]",))
    assert niwaki.cut(model, plan).model.layers[0].mlp.experts.down_proj.shape[0] == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["eager", "batched_mm", "grouped_mm"])
def test_implementations_of_transformers(how: str) -> None:
    model: Any = decoder("Olmoe")
    model.set_experts_implementation(how)
    assert sum(one.erasable for one in experts(niwaki.search_space(model, tokens(), erase=True))) == 8


def test_as_many_stay_as_are_chosen() -> None:
    torch.manual_seed(0)
    space = niwaki.search_space(Around(Listed(k=2)), X, erase=True)
    names = [one.name for one in experts(space)]
    without(space, names[:2])
    why = "layers.0.experts.2 cannot be erased: its router chooses 2 experts at once, and only as many are left"
    with pytest.raises(PlanError, match=why):
        without(space, names[:3])


def test_costs_are_those_of_the_cut_network() -> None:
    """Of the multiply-accumulates only those of logits go: other experts get the tokens."""
    torch.manual_seed(0)
    for model in (Around(Listed(), Stacked()), Around(Parameters(), Named())):
        space = niwaki.search_space(model, X, erase=True)
        first, second = (next(one for one in experts(space) if one.router == router) for router in _routers(space))
        for names in ((first.name,), (first.name, second.name)):
            for widths in (False, True):
                plan = without(space, names, widths)
                small = check_exact(model, X, plan)
                cost = space.cost(plan)
                assert cost.params == sum(one.numel() for one in small.parameters())
                assert cost.memory == sum(one.nbytes for one in small.state_dict().values())
        dense, cost = space.cost(), space.cost(without(space, (first.name,)))
        assert dense.params - cost.params == first.params
        assert dense.macs - cost.macs == first.macs == len(X) * WIDTH


def _routers(space: SearchSpace) -> list[str]:
    return [str(router) for router in dict.fromkeys(one.router for one in experts(space))]


def test_with_layers() -> None:
    """A layer goes, and experts of the other; an expert of what goes is no loss."""
    model = decoder("Mixtral")
    space = niwaki.search_space(model, tokens(), erase=True)
    inside = {one.inside for one in experts(space)}
    assert [space.structures[number].name for number in sorted(n for n in inside if n is not None)] == [
        "model.layers.0.mlp",
        "model.layers.1.mlp",
    ]
    layer = ("model.layers.0.self_attn", "model.layers.0.mlp")
    names = (*layer, "model.layers.0.mlp.experts[0]", "model.layers.1.mlp.experts[0]", "model.layers.1.mlp.experts[3]")
    plan = without(space, names)
    (edit,) = plan.edits_of(EraseExperts)
    assert edit.weight == "model.layers.1.mlp.gate.weight" and edit.kept == (1, 2)
    small: Any = check_exact(model, tokens(), plan)
    assert small.model.layers[0].mlp.experts.num_experts == 2 and len(small.model.layers) == 1
    assert space.cost(plan).params == sum(one.numel() for one in small.parameters())


def test_check_and_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for number, build in enumerate((lambda: Around(Listed(), Stacked()), lambda: Around(Named(), Parameters()))):
        model = build()
        space = niwaki.search_space(model, X, erase=True)
        plan = without(space, [one.name for one in experts(space)][1::3], widths=True)
        outcome = niwaki.check(model, plan, X)
        assert outcome.holds and not outcome.zero
        small = niwaki.cut(model, plan)
        niwaki.save(small, tmp_path / str(number))
        assert torch.equal(niwaki.load(build(), tmp_path / str(number))(X), small(X))
        read = Plan.from_json((tmp_path / str(number) / "plan.json").read_text())
        assert read.edits == plan.edits


def test_plans_in_a_row() -> None:
    torch.manual_seed(0)
    for build, keys in ((Listed, "layers.0.experts."), (Stacked, "layers.0[")):
        end = "]" * keys.endswith("[")
        model = Around(build())
        space = niwaki.search_space(model, X, erase=True)
        small = niwaki.cut(model, without(space, (f"{keys}1{end}",)))
        again = niwaki.search_space(small, X, erase=True)
        assert len(experts(again)) == 3
        smallest = niwaki.cut(small, without(again, (f"{keys}1{end}",)))  # it was number 2
        both = without(space, (f"{keys}1{end}", f"{keys}2{end}"))
        assert torch.equal(niwaki.cut(model, both)(X), smallest(X))
        assert torch.equal(niwaki.cut(small, both)(X), smallest(X))
        with pytest.raises(PlanError, match="What has left cannot come back"):
            niwaki.cut(smallest, without(space, (f"{keys}3{end}",)))


def test_the_mask_and_shrinking_in_training() -> None:
    """`niwaki.zero_` masks the logits of a model, and of its copies, until the experts have left."""
    torch.manual_seed(0)
    model = Around(Listed(), Stacked()).double()
    x = X.double()
    plan = without(niwaki.search_space(model, x, erase=True), ("layers.0.experts.1", "layers.1[2]"))
    before, expected = model(x), niwaki.cut(model, plan)(x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        niwaki.zero_(model, plan)
        for network in (model, copy.deepcopy(model)):
            assert torch.allclose(network(x), expected, rtol=0, atol=1e-12)
    assert len(model.layers[0].gate._forward_hooks) == 1
    assert not torch.allclose(before, expected, rtol=0, atol=1e-6)
    model(x).square().sum().backward()
    optimizer.step()
    niwaki.zero_(model, plan)
    expected = model(x)
    assert torch.allclose(niwaki.cut(model, plan)(x), expected, rtol=0, atol=1e-12)
    niwaki.shrink(model, plan, optimizer)
    assert tensor_shapes(model) == smaller_shapes(plan) and not model.layers[0].gate._forward_hooks
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    assert {id(one) for one in optimizer.state} == {id(one) for one in model.parameters()}


# ------------------------------------------------------------------------------------------------------------ mutants


def _first(edit: EraseExperts, modules: Mapping[str, nn.Module]) -> None:
    _APPLY(replace(edit, kept=range(len(edit.kept))), modules)


_APPLY = EraseExperts.apply


def test_other_modules_than_rows_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(EraseExperts, "apply", _first)
        (why,) = {one.refused for one in experts(niwaki.search_space(Around(Listed()), X, erase=True))}
    assert why is not None and why.startswith("its code fails without 1 of 4: RuntimeError: mat1 and mat2")
    for entries in (list, reversed):
        monkeypatch.setattr(expert_trial.Router, "entries", _others(entries))
        (why,) = {one.refused for one in experts(niwaki.search_space(Around(Listed()), X, erase=True))}
        assert (why is None) == (entries is list)


def _others(order: Callable[[range], Any]) -> Callable[[Any, int], tuple[str, ...]]:
    def entries(router: Any, expert: int) -> tuple[str, ...]:
        number = list(order(range(router.experts)))[expert]
        return tuple(f"{one.path}.{one.keys[number]}" for one in router.lists)

    return entries


def test_a_router_that_still_chooses_them_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of zero, as weights of zero make them, are no minus infinity."""
    torch.manual_seed(0)
    monkeypatch.setattr(EraseExperts, "mask", lambda *_: lambda: None)
    for build in (Listed, Stacked):
        (why,) = {one.refused for one in experts(niwaki.search_space(Around(build()), X, erase=True))}
        assert why is not None and "it returns something else than where their logits are minus infinity" in why


def test_numbers_that_do_not_follow_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    edits = expert_trial.Router.edits
    monkeypatch.setattr(
        expert_trial.Router,
        "edits",
        lambda router, kept: tuple(one for one in edits(router, kept) if not isinstance(one, SetAttribute)),
    )
    (why,) = {one.refused for one in experts(niwaki.search_space(Around(Stacked()), X, erase=True))}
    assert why is not None and why.startswith("its code fails without 1 of 4: AssertionError")


def test_a_slice_of_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that has, by chance, as many rows as there are experts stays as it is."""

    class Mistaken(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(EXPERTS, WIDTH))

        def forward(self, x: Tensor) -> Any:
            return super().forward(x) + self.table.amax(0)

    torch.manual_seed(0)
    model = Around(Mistaken())
    space = niwaki.search_space(model, X, erase=True)
    small: Any = check_exact(model, X, without(space, ("layers.0.experts.0",)))
    assert small.layers[0].table.shape == (EXPERTS, WIDTH)
    monkeypatch.setattr(expert_trial.ExpertTrials, "best", lambda trials, guesses: trials.tried(guesses[-1]))
    (why,) = {one.refused for one in experts(niwaki.search_space(Around(Mistaken()), X, erase=True))}
    assert why == "without 1 of 4 it returns something else than where their logits are minus infinity"


# ------------------------------------------------------------------------------------------------- choices and methods


class Mixed(nn.Module):
    """Experts and two other branches."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.experts, self.head = nn.Linear(3, WIDTH), Listed(), nn.Linear(WIDTH, 2)
        self.a, self.b = Expert(8), Expert(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = x + self.a(x)
        x = x + self.experts(x)
        return self.head(x + self.b(x))  # type: ignore[no-any-return]


def chosen(space: SearchSpace, remove: Any, **limit: float) -> Plan:
    return niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(**limit), remove=remove)


def test_experts_are_chosen_for_what_they_cost() -> None:
    """The least ones for a budget of parameters, as many as their router can do without; and with widths."""
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        for number in (1, 3):
            for parameter in model.experts.experts[number].parameters():
                parameter.mul_(0.01)
    space = niwaki.search_space(model, X, erase=True)
    plan = chosen(space, "structures", params=0.75)
    (edit,) = plan.edits_of(EraseExperts)
    assert edit.kept == (0, 2) and not plan.edits_of(EraseModules)
    small = check_exact(model, X, plan)
    assert sum(one.numel() for one in small.parameters()) <= 0.75 * sum(one.numel() for one in model.parameters())
    (edit,) = chosen(space, "both", params=0.6).edits_of(EraseExperts)
    assert set(edit.kept) >= {0, 2}
    with pytest.raises(BudgetError, match=r"without 4 of 6 structures 194 \(34.0%\) remain, and no other can go"):
        chosen(space, "structures", params=0.1)


@pytest.mark.parametrize("method", ["H2SPG", "HESSO", "widths"])
def test_methods_leave_experts_alone(method: str) -> None:
    """A router goes on choosing an expert whose weights are zero."""
    torch.manual_seed(0)
    model = Mixed()
    space = niwaki.search_space(model, X, erase=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    budget, schedule = niwaki.Budget(macs=0.8), niwaki.Schedule(start=3, until=15, periods=3)
    made: Any
    if method == "H2SPG":
        made = niwaki.H2SPG(space, optimizer, budget, schedule)
    else:
        remove: Any = "units" if method == "widths" else "structures"
        made = niwaki.HESSO(space, optimizer, budget, schedule, remove=remove)
    for _ in range(15):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    plan = made.plan()
    assert not plan.edits_of(EraseExperts) and bool(plan.edits_of(EraseModules)) == (method != "widths")
    assert torch.allclose(niwaki.cut(model, plan)(X), model(X), atol=1e-6)


def test_methods_say_that_experts_stay() -> None:
    torch.manual_seed(0)
    schedule = niwaki.Schedule(start=3, until=15)
    model: nn.Module = Mixed()
    space = niwaki.search_space(model, X, erase=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    why = r"or make layers narrower too. \(4 experts stay while a method trains; niwaki.choose can erase them.\)"
    with pytest.raises(BudgetError, match=why):
        niwaki.H2SPG(space, optimizer, niwaki.Budget(params=0.2), schedule)
    model = nn.Sequential(nn.Linear(3, WIDTH), Listed(), nn.Linear(WIDTH, 2))
    space = niwaki.search_space(model, X, erase=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    why = "There is no structure that a method could drive to zero: all that can be erased are experts"
    with pytest.raises(BudgetError, match=why):
        niwaki.H2SPG(space, optimizer, niwaki.Budget(params=0.8), schedule)
    assert chosen(space, "structures", params=0.8).edits_of(EraseExperts)


def test_one_block_of_each_kind_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block with the same classes, settings and sizes does the same; one with other settings may not."""
    tried: list[str] = []
    law = expert_trial.law

    def counted(block: nn.Module, router: Any, *rest: Any) -> Any:
        tried.append(router.lists[0].path if router.lists else router.weight)
        return law(block, router, *rest)

    monkeypatch.setattr(expert_trial, "law", counted)
    torch.manual_seed(0)
    model = Around(Listed(), Stacked(), Listed(), Listed(k=1), Stacked())
    space = niwaki.search_space(model, X, erase=True)
    assert tried == ["experts", "router", "experts"] and all(one.erasable for one in experts(space))


def test_criteria_that_run_without_an_expert() -> None:
    """No router chooses it then, and nothing of it stays changed."""
    torch.manual_seed(0)
    for build in (Listed, Stacked):
        model = Around(build())
        space = niwaki.search_space(model, X, erase=True)
        expected = model(X).detach()
        before = {name: value.clone() for name, value in model.state_dict().items()}

        def loss(network: nn.Module, batch: Tensor, expected: Tensor = expected) -> Tensor:
            made: Tensor = network(batch)
            return (made - expected).square().mean()

        for criterion in ("cka", "reinitialised"):
            values = niwaki.score(space, criterion, batches=[X], loss_fn=loss).values
            own = [float(values[group.first]) for group in space.groups if group.structure is not None]
            assert len(own) >= EXPERTS and sum(value > 0 for value in own) >= 2, criterion
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
        assert torch.equal(model(X), expected) and not any(one._forward_hooks for one in model.modules())


def test_with_inexact_units_they_are_units() -> None:
    """Experts that are units already are not offered once more."""
    space = niwaki.search_space(decoder("Mixtral"), tokens(), erase=True, allow_inexact=True)
    gates = [group for group in space.groups if group.inexact and group.name.endswith("mlp.gate")]
    assert [group.units for group in gates] == [4, 4] and not experts(space)
