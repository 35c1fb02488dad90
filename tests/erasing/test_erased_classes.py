"""Structures that leave the user's own class: what stands where modules were, for inputs of other sizes too."""

from __future__ import annotations

import copy
import io
import pickle
from collections import namedtuple
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import niwaki
from niwaki.core.absent import Absent
from niwaki.core.edits import EraseModules
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.core.space import SearchSpace
from niwaki.errors import PlanError
from niwaki.networks.torchvision_cpu import load
from niwaki.surgery.history import plan_of
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import randomised
from niwaki.testing.rivals import Rivals

load()
from torchvision.models import ResNet, VisionTransformer  # noqa: E402 - its operators are declared by now
from torchvision.models.convnext import CNBlockConfig, ConvNeXt  # noqa: E402
from torchvision.models.resnet import BasicBlock, Bottleneck  # noqa: E402


def without(space: SearchSpace, names: Iterable[str], widths: int | None = None) -> Plan:
    """The plan that erases the structures of these names, and half of all units where ``widths`` is a seed."""
    keep = np.ones(space.num_units, dtype=bool)
    left = set(names)
    rng = None if widths is None else np.random.default_rng(widths)
    for group in space.groups:
        if group.structure is not None:
            keep[group.first] = space.structures[group.structure].name not in left
            left.discard(space.structures[group.structure].name)
        elif rng is not None:
            keep[group.numbers] = rng.permutation(np.arange(group.units) < (group.units + 1) // 2)
    assert not left, f"no structures can be erased of the names {left}"
    return space.plan(keep)


def edit_of(plan: Plan) -> EraseModules:
    (edit,) = plan.edits_of(EraseModules)
    return edit


def pictures(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def tokens(length: int, batch: int = 2) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 31, (batch, length))}


def resnet(block: Any = BasicBlock) -> nn.Module:
    return ResNet(block, [2, 2, 1, 1], num_classes=5)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=4)


def gpt2(**more: Any) -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=16, n_layer=3, n_head=2, vocab_size=31, n_positions=20, bos_token_id=1, eos_token_id=2, **more
        )
    )


def t5() -> nn.Module:
    return transformers.T5Model(
        transformers.T5Config(d_model=16, d_ff=24, num_layers=3, num_heads=2, d_kv=4, vocab_size=31)
    )


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, vocab_size=31
        )
    )


# What is built, an input, another one, and structures whose modules become absent.
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, tuple[str, ...]]] = {
    "basic blocks": (
        resnet,
        pictures(32),
        pictures(37, 1),
        ("layer1.1", "layer2.0", "layer2.1", "layer4.0.downsample"),
    ),
    "bottlenecks": (lambda: resnet(Bottleneck), pictures(32), pictures(45, 3), ("layer1.0.downsample", "layer3.0")),
    "halves of a vision transformer": (
        lambda: VisionTransformer(16, 8, 2, 2, 16, 24),
        pictures(16),
        pictures(16, 5),
        ("encoder.layers.encoder_layer_0.mlp", "encoder.layers.encoder_layer_1.self_attention"),
    ),
    "halves of GPT-2": (gpt2, tokens(6), tokens(11, 3), ("transformer.h.0.attn", "transformer.h.2.mlp")),
    "halves of BERT": (bert, tokens(6), tokens(9, 1), ("encoder.layer.0.attention", "encoder.layer.2")),
    "halves of T5": (
        t5,
        tokens(6) | {"decoder_input_ids": tokens(5)["input_ids"]},
        tokens(9, 3) | {"decoder_input_ids": tokens(7, 3)["input_ids"]},
        ("encoder.block.1.layer.0", "decoder.block.1.layer.1", "decoder.block.2.layer.0", "decoder.block.2.layer.2"),
    ),
}


def first(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def run(model: nn.Module, given: Any) -> Tensor:
    return first(model(**given) if isinstance(given, dict) else model(given))


@pytest.mark.parametrize("widths", [None, 0], ids=["alone", "with widths"])
@pytest.mark.parametrize("name", CASES)
def test_modules_become_absent(name: str, widths: int | None) -> None:
    """Exact, forward and backward, in the shape that was analysed; and forward in another."""
    build, inputs, others, erased = CASES[name]
    torch.manual_seed(0)
    model = randomised(build().eval()).double()
    plan = without(niwaki.search_space(model, inputs, erase=True), erased, widths)
    assert set(edit_of(plan).structures) == set(erased) and edit_of(plan).absent and not edit_of(plan).entries
    rivals = Rivals(model, plan)
    call = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    gradients = rivals.gradients(call)
    assert rivals.outputs(call).deviation < 1e-10 and gradients is not None and gradients.deviation < 1e-8
    small = niwaki.cut(model, plan)
    assert tensor_shapes(small) == smaller_shapes(plan)
    for given in (inputs, others):
        with torch.no_grad():
            expected = run(zeroed(model, plan), given)
            assert float((run(small, given) - expected).abs().max() / expected.abs().max()) < 1e-10


@pytest.mark.parametrize("widths", [None, 0], ids=["alone", "with widths"])
def test_blocks_that_hand_on_what_they_are_given_are_deleted(widths: int | None) -> None:
    torch.manual_seed(0)
    model, x = randomised(convnext().eval()).double(), pictures(32)
    plan = without(niwaki.search_space(model, x, erase=True), ("features.1.0", "features.3.1"), widths)
    edit = edit_of(plan)
    assert edit.entries == ("features.1.0", "features.3.1") and not edit.absent
    assert edit.renumbered == {"features.1.1": "0"}
    rivals = Rivals(model, plan)
    gradients = rivals.gradients(((x,), {}))
    assert rivals.outputs(((x,), {})).deviation < 1e-10 and gradients is not None and gradients.deviation < 1e-8
    small: Any = niwaki.cut(model, plan)
    assert len(small.features[1]) == len(small.features[3]) == 1
    assert tensor_shapes(small) == smaller_shapes(plan)
    assert not any(isinstance(module, Absent) for module in small.modules())


class Taps(nn.Module):
    """Residual layers, of which some outputs are returned by the number of their layer."""

    def __init__(self, taps: tuple[int, ...], last: bool = True) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(3, 6), nn.Linear(6, 2) if last else None
        self.layers = nn.ModuleList(nn.ModuleDict({"in": nn.Linear(6, 8), "out": nn.Linear(8, 6)}) for _ in range(4))
        self.blocks = nn.ModuleList(Block(6, 8) for _ in range(4))
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taps:
                found.append(x)
        for layer in self.layers:
            x = x + layer["out"](torch.relu(layer["in"](x)))
        return [*found, x if self.last is None else self.last(x)]


class Block(nn.Module):
    def __init__(self, wide: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(wide, hidden), nn.Linear(hidden, wide)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


def test_layers_are_deleted_unless_code_counts_them() -> None:
    """Where outputs are told by the number of a layer, its modules are absent instead."""
    x = torch.randn(5, 3, dtype=torch.float64)
    for taps, deleted in (((), ("blocks.1", "blocks.3")), ((1, 2), ())):
        torch.manual_seed(0)
        model = Taps(taps).double()
        space = niwaki.search_space(model, x, erase=True)
        plan = without(space, ("blocks.1", "blocks.3", "layers.0"))
        assert edit_of(plan).entries == deleted
        small, dense = niwaki.cut(model, plan), zeroed(model, plan)
        assert all(torch.allclose(*pair, atol=1e-12) for pair in zip(small(x), dense(x), strict=True))
        assert tensor_shapes(small) == smaller_shapes(plan)


def test_a_network_without_whole_modules_is_copied_and_pickled() -> None:
    torch.manual_seed(0)
    model, x = resnet().eval().double(), pictures(32)
    small = niwaki.cut(model, without(niwaki.search_space(model, x, erase=True), ("layer1.0", "layer2.0")))
    absent = [module for module in small.modules() if isinstance(module, Absent)]
    assert absent and not any(True for module in absent for _ in module.state_dict())
    written = io.BytesIO()
    torch.save(small, written)
    written.seek(0)
    for other in (
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.load(written, weights_only=False),
        niwaki.cut(small, without(niwaki.search_space(small, x, erase=True), ())),
    ):
        assert torch.equal(other(x), small(x))
    exported = torch.export.export(small, (x,)).module()
    assert torch.allclose(exported(x), small(x))


@pytest.mark.parametrize("build", [resnet, convnext])
def test_files(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = randomised(build().eval()), pictures(32).float()
    space = niwaki.search_space(model, x, erase=True)
    names = [one.name for one in space.structures if one.erasable and "downsample" not in one.name][::2]
    plan = without(space, names, 0)
    small = niwaki.cut(model, plan)
    niwaki.save(small, tmp_path / "out")
    loaded = niwaki.load(build().eval(), tmp_path / "out")
    assert torch.equal(loaded(x), small(x))
    read = Plan.from_json((tmp_path / "out/plan.json").read_text())
    assert read.edits == plan.edits and torch.equal(niwaki.cut(model, read)(x), small(x))


def test_plans_in_a_row() -> None:
    """Layers are erased, then others of what is left, whose names are new; a plan for the dense network does both."""
    torch.manual_seed(0)
    model, x = convnext_of(4), pictures(16)
    space = niwaki.search_space(model, x, erase=True)
    small: Any = niwaki.cut(model, without(space, ("features.1.1",), 0))
    again = niwaki.search_space(small, x, erase=True)
    smallest: Any = niwaki.cut(small, without(again, ("features.1.1",), 1))  # it was number 2
    assert len(smallest.features[1]) == 2
    both = plan_of(smallest)
    assert both is not None and edit_of(both).entries == ("features.1.1", "features.1.2")
    assert torch.allclose(niwaki.cut(model, both)(x), smallest(x), atol=1e-12)
    first_and_second = without(space, ("features.1.1", "features.1.2"))
    one: Any = niwaki.cut(niwaki.cut(model, without(space, ("features.1.1",))), first_and_second)
    assert torch.equal(one(x), niwaki.cut(model, first_and_second)(x))
    with pytest.raises(PlanError, match="keeps the structure 'features.1.1', which has left this network already"):
        niwaki.cut(one, without(space, ("features.1.3",)))


def convnext_of(blocks: int) -> nn.Module:
    return randomised(ConvNeXt([CNBlockConfig(8, None, blocks)], num_classes=4).eval()).double()


@pytest.mark.parametrize("erased", [("layer1.1", "layer2.0"), ("layer1.0.downsample",)])
def test_shrinking_in_training(erased: tuple[str, ...]) -> None:
    """The optimizer forgets what has left, and takes the steps that a cut network's own would."""
    torch.manual_seed(0)
    block = Bottleneck if "downsample" in erased[0] else BasicBlock
    model, x = randomised(resnet(block)).double(), pictures(32)
    plan = without(niwaki.search_space(model, x, erase=True), erased)
    niwaki.zero_(model, plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        niwaki.zero_(model, plan)
    small = niwaki.cut(model, plan)
    niwaki.shrink(model, plan, optimizer)
    assert tensor_shapes(model) == smaller_shapes(plan)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in model.parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not torch.equal(model(x), small(x))


class Reads(nn.Module):
    """Code that does more with a branch than call it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = torch.relu(self.a(h))
        if self.how == "its weight":
            y = y.to(self.b.weight.dtype)
        return self.head(h + (nn.functional.linear(y, self.b.weight) if self.how == "no call" else self.b(y)))


def test_why_a_class_cannot_do_without() -> None:
    expected = {
        "its weight": "its code fails without it: AttributeError: 'Absent' object has no attribute 'weight'",
        "no call": "'b' cannot be left out of its code: its parameter 'b.weight' is read without a call of it",
    }
    for how, why in expected.items():
        space = niwaki.search_space(Reads(how), torch.randn(2, 3), erase=True)
        (one,) = [one for one in space.structures if "b.weight" in one.parameters]
        assert one.refused == f"{why}; use as_graph=True"
        assert f"not erasable, {why}; use as_graph=True" in str(space)
        program = niwaki.search_space(Reads(how), torch.randn(2, 3), erase=True, as_graph=True)
        assert all(one.erasable for one in program.structures)
    assert all(one.erasable for one in niwaki.search_space(Reads(""), torch.randn(2, 3), erase=True).structures)


def test_the_layer_that_makes_the_positions_of_all_others() -> None:
    """T5's first layers go on making them for as many heads as there are: their queries, which nothing reads, are as
    wide as that many heads. Where no parameter tells how many, or the width of a head may change, they have to stay."""
    given = tokens(6) | {"decoder_input_ids": tokens(5)["input_ids"]}
    model = t5()
    space = niwaki.search_space(model, given, erase=True)
    whys = {one.name: one.refused for one in space.structures if one.refused is not None}
    assert set(whys) == {"decoder.block.0.layer.1"}
    why = whys["decoder.block.0.layer.1"]
    assert why is not None and why.startswith(
        "'decoder.block.0.layer.1.EncDecAttention' cannot be left out of its code: "
    )
    assert why.endswith(" joins it with what may get narrower; use as_graph=True")
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.name in ("encoder.block.0.layer.0 (whole)", "encoder.block.0.layer.0.SelfAttention.q"):
            keep[group.first] = False  # a head of all layers, and the attention of the first
    plan = niwaki.Plan.from_json(space.plan(keep).to_json())
    small = niwaki.cut(model, plan)
    absent = small.encoder.block[0].layer[0].SelfAttention.q  # type: ignore[union-attr, index]
    heads = small.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.shape[1]  # type: ignore[union-attr, index]
    assert isinstance(absent, Absent) and absent(torch.ones(2, 9, 1)).shape == (2, 9, heads * 4)
    assert Rivals(randomised(model).double(), plan).outputs(((), given)).deviation < 1e-10
    inner = niwaki.search_space(model, given, erase=True, inner=True)
    assert {one.name for one in inner.structures if one.refused is not None} == {
        "encoder.block.0.layer.0", "decoder.block.0.layer.0", "decoder.block.0.layer.1",
    }  # fmt: skip


def test_a_plan_for_another_class_is_refused() -> None:
    torch.manual_seed(0)
    model, x = convnext(), pictures(32).float()
    plan = without(niwaki.search_space(model, x, erase=True), ("features.1.0",))
    other: Any = convnext()
    other.features[1] = nn.ModuleDict(dict(other.features[1].named_children()))
    with pytest.raises(PlanError, match="deletes 'features.1.0', which is not an entry of a list of modules"):
        niwaki.cut(other, plan)
    with pytest.raises(PlanError, match="The plan was made for the model itself"):
        niwaki.cut(model, plan, as_graph=True, example_inputs=x)
    damaged = Plan.from_json(plan.to_json().replace('"entries": ["features.1.0"]', '"entries": ["features.1.7"]'))
    with pytest.raises(PlanError, match=r"erases a module 'features\.1\.7', of which the network it is for has no"):
        niwaki.cut(model, damaged)


def test_names_of_a_result_are_not_lost() -> None:
    """A named tuple would come back as a plain one: the class is refused, with the reason."""
    names = namedtuple("names", "y aux")

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Any:
            return names(self.layer(x), None)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.named, self.head = Named(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(x + self.named(x).y)
            return result

    (one,) = niwaki.search_space(Net(), torch.randn(2, 6), erase=True).structures
    assert (
        one.refused is not None and "'named' cannot be left out of its code: it returns something else" in one.refused
    )


class CalledTwice(nn.Module):
    """Two branches run through one layer, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.shared = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 6)
        self.down, self.branch, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2]."""
        x = self.stem(x)
        h = self.shared(self.up(x))
        return self.head(x + self.down(h) + self.branch(torch.relu(self.shared(h))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("as_graph", [False, True])
def test_code_of_a_module_that_stays_runs_on(as_graph: bool) -> None:
    """It costs what it did, though nothing follows from its second call; in a program that is not there."""
    x = torch.randn(1, 3)
    space = niwaki.search_space(CalledTwice(), x, erase=True, as_graph=as_graph)
    (name,) = (one.name for one in space.structures if one.erasable and "branch.weight" in one.parameters)
    cost = space.cost(without(space, [name]))
    assert (cost.macs, cost.params) == (12 + 24 + (2 - as_graph) * 36 + 24 + 8, 16 + 30 + 42 + 28 + 10)
