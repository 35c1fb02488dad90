"""The graph-level cut: programs obey the same law, and what only a number in the source pins is free in them."""

from __future__ import annotations

import gc
import io
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from zoo import ZOO

import niwaki
from niwaki.core.edits import Keep
from niwaki.core.precision import doubled
from niwaki.errors import FileFormatError, PlanError, TraceError
from niwaki.networks.torchvision_cpu import load
from niwaki.program.convert import rebuilt
from niwaki.program.module import Program
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import random_plan, randomised
from niwaki.verify import difference

TOLERANCE = {"float32": 1e-5, "eval": 1e-10, "train": 1e-8}


class Attention(nn.Module):
    """Heads written as numbers, one fused projection taken apart by chunk, a mask that the heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(10, 36), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        q, k, v = (part.view(b, -1, 3, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(y.transpose(1, 2).reshape(b, -1, 12))


class Views(nn.Module):
    """Literal sizes in view, narrow, slices, split, expand, zeros, unflatten, and a group count of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(22, 3)
        self.scale = nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h, g = self.a(x), self.b(x)
        h = (h.view(-1, 3, 4) * self.scale.expand(3, 4)).reshape(-1, 12) + torch.zeros(12)
        first, second = g.split([5, 7], 1)
        narrow = second.narrow(1, 2, 5)
        left = h.unflatten(1, (6, 2)).flatten(1)[:, :10]
        grouped = nn.functional.group_norm(left, 5)
        return self.c(torch.cat([grouped, first, narrow, g[:, 10:]], 1))


class Regions(nn.Module):
    """A table made under no_grad and under autocast, tied weights, a constant tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mid, self.last = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        with torch.no_grad():
            ramp = torch.arange(6).to(x.dtype).view(1, 1, 6)
        with torch.autocast("cpu", enabled=False):
            h = torch.relu(self.mid(x + ramp)).view(-1, 4, 2).reshape(*tokens.shape, 8)
        return self.head(self.last(h) * torch.tensor([1.0, 2, 3, 4, 5, 6]))


class Shuffled(nn.Module):
    """Two branches whose channels are dealt out in turn, as in ShuffleNet. The 2 of the view is two units that are not
    alike, so none of them can leave, and the positions between them are the units."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 3, padding=1), nn.Linear(32, 3)
        self.next = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dealt(self.left(x), self.right(x))
        for layer in self.next:
            first, second = x.chunk(2, 1)
            x = self.dealt(first, torch.relu(layer(second)))
        return self.last(x.mean((2, 3)))

    def dealt(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([left, right], 1).view(-1, 2, 16, 4, 4).transpose(1, 2).reshape(-1, 32, 4, 4)


def attention() -> tuple[nn.Module, Any]:
    return Attention(), torch.randn(2, 5, 10)


def views() -> tuple[nn.Module, Any]:
    return Views(), torch.randn(2, 5)


def regions() -> tuple[nn.Module, Any]:
    return Regions(), torch.randint(0, 11, (2, 5))


def shuffled() -> tuple[nn.Module, Any]:
    return Shuffled(), torch.randn(2, 3, 4, 4)


class Functional(nn.Module):
    """torch's own attention, whose head size is computed from the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x, need_weights=False)[0])


def functional() -> tuple[nn.Module, Any]:
    return Functional(), torch.randn(2, 5, 16)


def vit() -> tuple[nn.Module, Any]:
    from niwaki.networks.torchvision_cpu import load

    model = load().models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
    )
    return model, torch.randn(2, 3, 32, 32)


def resnet() -> tuple[nn.Module, Any]:
    return ZOO["resnet18"].build(), torch.randn(2, 3, 32, 32)


def llama() -> tuple[nn.Module, Any]:
    return ZOO["llama"].build(), {**ZOO["llama"].inputs(), "use_cache": False}


def bert() -> tuple[nn.Module, Any]:
    return ZOO["bert"].build(), ZOO["bert"].inputs()


def experts() -> tuple[nn.Module, Any]:
    """A mixture of experts whose matrices are multiplied by an operator of the library's own."""
    load()
    from transformers import MixtralConfig, MixtralForCausalLM
    from transformers.integrations import moe

    if not hasattr(moe, "_grouped_mm_fallback"):
        pytest.skip("this version of transformers multiplies experts on a CPU in bfloat16 only")
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, use_cache=False,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("grouped_mm")
    return model, {"input_ids": torch.arange(12).reshape(2, 6)}


MODELS = [attention, views, regions, shuffled, functional, vit, resnet, llama, bert]
WIDER = [attention, views, regions, shuffled, functional, vit]  # what the class itself pins


def given(build: Callable[[], tuple[nn.Module, Any]]) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, inputs = build()
    return randomised(model.eval()), inputs


def called(program: ExportedProgram, inputs: Any) -> Any:
    module = program.module()
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [value for value in result.values() if value is not None]


@pytest.mark.parametrize("build", [*MODELS, experts])
def test_the_law(build: Callable[[], tuple[nn.Module, Any]]) -> None:
    model, inputs = given(build)
    space = niwaki.search_space(model, inputs, as_graph=True)
    rng = np.random.default_rng(0)
    for _ in range(2):
        plan = niwaki.Plan.from_json(random_plan(space, rng).to_json())
        with doubled():  # where the model asks for float32
            found = deviations(space.model, plan, inputs)
        assert all(value <= TOLERANCE[what] for what, value in found.items()), found
        small = niwaki.cut(model, plan, as_graph=True, example_inputs=inputs)
        with torch.no_grad():
            ours, expected = outputs(called(small, inputs)), outputs(_called(zeroed(space.model, plan), inputs))
        assert difference(ours, expected) <= 1e-5
        params = sum(parameter.numel() for parameter in {id(p): p for p in small.parameters()}.values())
        assert params == space.cost(plan).params < space.cost().params


def test_experts_of_an_exported_program_can_be_cut() -> None:
    model, inputs = given(experts)
    assert niwaki.search_space(model, inputs, as_graph=True).coverage > 0.9


def _called(module: nn.Module, inputs: Any) -> Any:
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


@pytest.mark.parametrize("build", MODELS)
def test_coverage_is_never_lower_and_higher_where_numbers_are_in_the_way(build: Any) -> None:
    model, inputs = given(build)
    ours = niwaki.search_space(model, inputs, as_graph=True)
    classes = niwaki.search_space(model, inputs)
    print(f"{build.__name__}: {classes.coverage:.4f} -> {ours.coverage:.4f}")
    assert ours.coverage >= classes.coverage
    assert (ours.coverage > classes.coverage) == (build in WIDER)
    assert not [pin for pin in ours.pins if "written as the number" in pin.reason]
    assert len(ours.notes) == 1 and "an exported program" in ours.notes[0]


def test_positions_between_two_branches_are_units() -> None:
    model, x = given(shuffled)
    assert niwaki.search_space(model, x, as_graph=True).coverage > 0.99


def test_the_metadata_of_the_cut_program_is_that_of_its_results() -> None:
    model, x = given(attention)
    space = niwaki.search_space(model, x, as_graph=True)
    plan = random_plan(space, np.random.default_rng(0))
    small = niwaki.cut(model, plan, as_graph=True, example_inputs=x)

    class Compared(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            told = n.meta.get("val")
            if isinstance(result, Tensor) and n.op == "call_function":
                assert result.shape == told.shape and result.stride() == told.stride() and result.dtype == told.dtype
            return result

    with torch.no_grad():
        Compared(small.module()).run(x)


def test_programs_go_through_files_and_can_be_cut_again() -> None:
    model, x = given(regions)
    program = export(model, (x,))
    space = niwaki.search_space(program)
    small = niwaki.cut(program, random_plan(space, np.random.default_rng(0)))
    again = through_a_file(small)
    assert torch.equal(again.module()(x), small.module()(x))
    second = niwaki.search_space(again)
    assert second.num_units < space.num_units
    plan = random_plan(second, np.random.default_rng(1))
    assert niwaki.check(again, plan).holds
    tied = dict(niwaki.cut(again, plan).module().named_parameters(remove_duplicate=False))
    assert tied["head.weight"].shape == (11, 6)
    decomposed = niwaki.cut(program, random_plan(space, np.random.default_rng(0))).run_decompositions()
    assert torch.allclose(decomposed.module()(x), small.module()(x))


@pytest.mark.parametrize("build", [attention, views])
def test_a_dynamic_batch_stays_dynamic(build: Any) -> None:
    model, x = given(build)
    program = export(model, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=64)},))
    space = niwaki.search_space(program)
    assert space.coverage == niwaki.search_space(model, x, as_graph=True).coverage
    plan = random_plan(space, np.random.default_rng(0))
    assert niwaki.check(program, plan, [x, torch.cat([x, x, x])]).holds
    small = niwaki.cut(program, plan).module()
    more = torch.cat([x, x + 1, x + 2])
    assert torch.allclose(small(more), zeroed(space.model, plan)(more), atol=1e-6)
    with pytest.raises(AssertionError, match="<= 64"):
        small(torch.cat([x] * 40))


def test_dynamic_shapes_of_a_whole_model_survive(tmp_path: Path) -> None:
    """Batch and length of a transformer, through save and load; the plan was made before them."""
    torch.manual_seed(0)
    model = ZOO["gpt2"].build().eval()
    tokens = torch.randint(0, 90, (2, 9))
    sizes = {"input_ids": {0: Dim("batch", max=8), 1: Dim("length", min=2, max=16)}, "use_cache": None}
    kwargs = {"input_ids": tokens, "use_cache": False}
    program = export(model, (), kwargs, dynamic_shapes=sizes)
    if names_of(through_a_file(program)) != names_of(program):
        pytest.skip("this version of torch gives nodes other names when it loads a program; plans name them")
    space = niwaki.search_space(program)
    plan = random_plan(space, np.random.default_rng(0))
    cut = niwaki.cut(through_a_file(program), plan)
    niwaki.save(cut, tmp_path)
    small = niwaki.load_program(tmp_path).module()
    filled = niwaki.load(export(ZOO["gpt2"].build().eval(), (), kwargs, dynamic_shapes=sizes), tmp_path).module()
    for shape in ((2, 9), (5, 3), (8, 16)):
        tokens = torch.randint(0, 90, shape)
        with torch.no_grad():
            expected = zeroed(space.model, plan)(input_ids=tokens, use_cache=False).logits
            for run in (through_a_file(cut).module(), small, filled):
                assert difference([run(input_ids=tokens, use_cache=False).logits], [expected]) < 1e-5


def names_of(program: ExportedProgram) -> list[str]:
    return [node.name for node in program.graph.nodes]


def through_a_file(program: ExportedProgram) -> ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize("build", [attention, views, functional, shuffled])
def test_decomposed_programs(build: Any) -> None:
    model, x = given(build)
    program = export(model, (x,)).run_decompositions()
    space = niwaki.search_space(program)
    whole = niwaki.search_space(model, x, as_graph=True).coverage
    assert space.coverage == whole or build is views  # a norm of groups of two, taken apart, leaves no groups alike
    assert niwaki.check(program, random_plan(space, np.random.default_rng(0))).holds


class Steps(nn.Module):
    """It counts its calls, looks at the count, and goes on with an average of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        h = self.a(x + self.count).relu()
        self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return self.b(h)


@pytest.mark.parametrize("decomposed", [False, True])
def test_programs_that_write_to_buffers(decomposed: bool) -> None:
    """Decomposed ones return what is written, beside what the user gets; a check starts each network from the same."""
    torch.manual_seed(0)
    program = export(Steps().eval(), (torch.randn(3, 4),))
    program = program.run_decompositions() if decomposed else program
    space = niwaki.search_space(program)
    plan = space.plan([True, False, True, True, False, True])
    assert niwaki.check(program, plan).holds
    small = niwaki.cut(program, plan)
    assert small.state_dict["mean"].shape == (4,) and small.state_dict["count"] == 0


class Counting(nn.Module):
    """Statistics that training updates, a number and a None among the inputs, an input among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Linear(12, 2)

    def forward(self, x: Tensor, times: int, mask: Tensor | None = None) -> dict[str, Any]:
        h = self.norm(self.a(x)).view(-1, 3, 4).flatten(1) * times
        return {"out": self.b(h if mask is None else h * mask), "x": x, "times": times}


def test_a_program_of_training_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    model, x = randomised(Counting()).double().train(), torch.randn(6, 4, dtype=torch.float64)
    program = export(model, (x, 3, None))
    space = niwaki.search_space(program)
    plan = random_plan(space, np.random.default_rng(0))
    assert space.coverage > 0.9 and niwaki.check(program, plan).holds
    small, zero = niwaki.cut(program, plan).module(), zeroed(space.model, plan)
    with torch.no_grad():
        ours, expected = small(x, 3, None), zero(x, 3, None)
    assert difference([ours["out"]], [expected["out"]]) < 1e-10
    assert torch.equal(ours["x"], x) and ours["times"] == 3
    (kept,) = plan.tensors["norm.running_mean"].values()
    statistics, reference = dict(small.named_buffers()), dict(zero.named_buffers())
    assert difference([statistics["norm.running_mean"]], [reference["norm.running_mean"][list(kept)]]) < 1e-10
    assert int(statistics["norm.num_batches_tracked"]) == int(reference["norm.num_batches_tracked"]) == 1


def test_a_model_without_weights_gives_the_same_space() -> None:
    model, x = given(resnet)
    with torch.device("meta"):
        empty = ZOO["resnet18"].build().eval()
    parameters = [id(parameter) for parameter in empty.parameters()]
    ours, real = (niwaki.search_space(net, x, as_graph=True) for net in (empty, model))
    assert (ours.coverage, ours.num_units, ours.cost()) == (real.coverage, real.num_units, real.cost())
    assert {id(parameter) for parameter in ours.model.parameters()} == set(parameters)
    assert all(parameter.is_meta for parameter in empty.parameters())
    plan = random_plan(ours, np.random.default_rng(0))
    assert niwaki.check(model, plan, x, as_graph=True).holds
    small = niwaki.cut(empty, plan, as_graph=True, example_inputs=x)
    assert sum(parameter.numel() for parameter in small.parameters()) == ours.cost(plan).params


def test_a_cut_copies_the_weights_once_and_warns_of_nothing() -> None:
    model, x = given(attention)
    space = niwaki.search_space(model, x, as_graph=True)
    plan = random_plan(space, np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = niwaki.cut(model, plan, as_graph=True, example_inputs=x)
        callable_ = small.module()
    dense = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    ours = {parameter.untyped_storage().data_ptr() for parameter in small.parameters()}
    assert ours.isdisjoint(dense)
    assert {parameter.untyped_storage().data_ptr() for parameter in callable_.parameters()} == ours
    freed = weakref.ref(model.qkv.weight)
    del model, space
    gc.collect()
    assert freed() is None and callable_(x).shape == x.shape


def test_the_program_shares_the_weights_of_the_model() -> None:
    """So that the class is trained, and its graph is cut."""
    model, x = given(functional)
    space = niwaki.search_space(model.train(), x, as_graph=True)
    assert isinstance(space.model, Program) and model.training
    ours, theirs = dict(space.model.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    schedule = niwaki.Schedule(start=1, until=6, periods=2)
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(units=0.5), schedule)
    for _ in range(8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    small = niwaki.cut(model, method.plan(), as_graph=True, example_inputs=x)
    with torch.no_grad():
        assert difference([small.module()(x)], [model.eval()(x)]) < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()


def test_pins_name_the_line_of_the_source() -> None:
    model, x = given(vit)
    space = niwaki.search_space(model, x, as_graph=True)
    (pin,) = [pin for pin in space.pins if (pin.parameter, pin.dim) == ("conv_proj.weight", 2)]
    assert pin.location is not None and pin.location.file.endswith("vision_transformer.py")
    assert pin.location.line > 0 and pin.location.module == "conv_proj"


def test_head_positions_keep_the_scale_of_the_attention() -> None:
    model, x = given(attention)
    space = niwaki.search_space(model, x, as_graph=True, inner=True)
    assert space.num_units > niwaki.search_space(model, x, as_graph=True).num_units
    plan = random_plan(space, np.random.default_rng(3))
    assert niwaki.check(model, plan, x, as_graph=True).holds


def test_a_wrong_plan_is_found_and_its_first_call_named() -> None:
    model, x = given(attention)
    space = niwaki.search_space(model, x, as_graph=True)
    plan = random_plan(space, np.random.default_rng(0))
    kept = plan.tensors["out.weight"][1]
    columns = Keep("out.weight", 1, tuple(position for position in range(12) if position not in kept)[: len(kept)])
    if len(columns.kept) == len(kept):
        wrong = replace(plan, edits=tuple(columns if it.place == columns.place else it for it in plan.edits))
        verdict = niwaki.check(model, wrong, x, as_graph=True)
        assert not verdict.holds and verdict.diverges is not None and "test_graph_cut.py" in verdict.diverges


def test_a_program_that_departs_from_its_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(small: Program) -> ExportedProgram:
        made = rebuilt(small)
        made.state_dict["qkv.weight"] = nn.Parameter(made.state_dict["qkv.weight"].detach() * 1.1)
        return made

    model, x = given(attention)
    plan = random_plan(niwaki.search_space(model, x, as_graph=True), np.random.default_rng(0))
    assert niwaki.check(model, plan, x, as_graph=True).holds
    monkeypatch.setattr("niwaki.verify.rebuilt", careless)
    verdict = niwaki.check(model, plan, x, as_graph=True)
    assert not verdict.holds and "exported program" in str(verdict)


def test_wrong_plans_and_inputs_are_told() -> None:
    model, x = given(functional)
    graph = niwaki.search_space(model, x, as_graph=True)
    plan = random_plan(graph, np.random.default_rng(0))
    with pytest.raises(PlanError, match="made for the graph of the model.*as_graph=True"):
        niwaki.cut(model, plan)
    with pytest.raises(PlanError, match="does not fit this program.*inputs of other shapes"):
        niwaki.cut(model, plan, as_graph=True, example_inputs=torch.randn(3, 4, 16))
    with pytest.raises(TraceError, match="no example inputs"):
        niwaki.cut(model, plan, as_graph=True)
    with pytest.raises(TraceError, match="no example inputs"):
        niwaki.search_space(model)
    other, pixels = given(resnet)
    classes = random_plan(niwaki.search_space(other, pixels), np.random.default_rng(0))
    with pytest.raises(PlanError, match="made for the model itself.*without as_graph"):
        niwaki.cut(other, classes, as_graph=True, example_inputs=pixels)
    with pytest.raises(PlanError, match="made for the model itself.*without as_graph"):
        niwaki.check(other, classes, pixels, as_graph=True)
    with pytest.raises(PlanError, match="made for the graph of the model.*as_graph=True"):
        niwaki.check(model, plan, x)
    with pytest.raises(TraceError, match="takes inputs of the structure"):
        niwaki.search_space(export(model, (x,)), {"y": x})
    with pytest.raises(FileFormatError, match="an exported program as the network, and beside it an optimizer"):
        optimizer = torch.optim.SGD(model.parameters())
        niwaki.save(niwaki.cut(export(model, (x,)), plan), "nowhere", optimizer=optimizer)


class Choosing(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.way == "python" and h.sum() > 0:
            h = h * 2
        if self.way == "cond":
            h = torch.cond(h.sum() > 0, lambda h: h * 2, lambda h: h - 1, (h,))
        if self.way == "data":
            h = h[h.sum(1) > -100]
        return self.b(h)


def test_what_cannot_be_exported_or_followed_is_told() -> None:
    x = torch.randn(5, 3)
    with pytest.raises(
        TraceError, match=r"torch.export cannot export the model: .*test_graph_cut.py:\d+: .*cut the model itself"
    ):
        niwaki.search_space(Choosing("python"), x, as_graph=True)
    with pytest.raises(TraceError, match="contains cond, at .*test_graph_cut.py.*control flow"):
        niwaki.search_space(Choosing("cond"), x, as_graph=True)
    with pytest.raises(TraceError, match="a size that depends on data.*test_graph_cut.py"):
        niwaki.search_space(Choosing("data"), x, as_graph=True)


def test_a_plan_of_a_graph_without_numbers_is_refused_by_the_module() -> None:
    """Nothing in it names the graph, but the layers would remember their dense sizes."""
    net, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(2, 4)
    space = niwaki.search_space(net, x, as_graph=True)
    keep = np.arange(space.num_units) > 4
    with pytest.raises(PlanError, match="made for the graph of the model"):
        niwaki.cut(net, space.plan(keep))
