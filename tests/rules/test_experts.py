"""Mixtures of experts: the law holds on the inputs that were traced and on others, which reach other experts."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki import rules
from niwaki.core.space import Group, SearchSpace
from niwaki.errors import PlanError
from niwaki.networks.torchvision_cpu import load
from niwaki.rules.call import Call, Refused
from niwaki.rules.label import Label
from niwaki.rules.registry import Rule
from niwaki.solve.build import Builder
from niwaki.solve.propagate import propagate
from niwaki.testing.models import random_plan, randomised
from niwaki.trace.tracer import example_calls, trace

WIDTH, INNER, EXPERTS = 12, 10, 4


class Expert(nn.Module):
    def __init__(self, sized: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.sized, self.width = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), sized, WIDTH

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y.view(-1, self.width) if self.sized else y


class ModuleList(nn.Module):
    """Top-k routing to a list of modules, in one of the ways in which people write it."""

    def __init__(self, how: str, k: int = 1, sized: bool = False) -> None:
        super().__init__()
        self.start, self.head, self.how, self.k, self.inner = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3), how, k, INNER
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert(sized) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        weight, chosen = self.gate(x).softmax(-1).topk(self.k, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            if self.how == "index_add":
                if len(row):
                    out.index_add_(0, row, expert(x[row]) * weight[row, place, None])
            elif self.how == "index_put":
                if row.numel() > 0:
                    out[row] += expert(x[row]) * weight[row, place, None]
            elif self.how == "mask":
                mask = (chosen == number).any(-1)
                if mask.any():
                    out[mask] = out[mask] + expert(x[mask]) * weight[mask].sum(-1, keepdim=True)
            elif self.how == "shared number":
                if len(row):
                    hidden = torch.relu(expert.up(x[row])).reshape(-1, self.inner)
                    out.index_add_(0, row, expert.down(hidden) * weight[row, place, None])
        return self.head(x + out)


class Lists(nn.Module):
    """The same with bare parameters, sorted by expert and split by counts read out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.head, self.gate = (
            nn.Linear(5, WIDTH),
            nn.Linear(WIDTH, 3),
            nn.Linear(WIDTH, EXPERTS, bias=False),
        )
        self.up = nn.ParameterList(torch.randn(WIDTH, INNER) for _ in range(EXPERTS))
        self.down = nn.ParameterList(torch.randn(INNER, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        chosen = self.gate(x).argmax(-1)
        order = chosen.argsort()
        made = []
        for number, part in enumerate(x[order].split(chosen.bincount(minlength=EXPERTS).tolist())):
            if len(part):
                made.append(torch.relu(part @ self.up[number]) @ self.down[number])
        return self.head(x + torch.cat(made)[order.argsort()])


class Stacked(nn.Module):
    """All experts in one tensor: every one on every token and mixed, or chosen by a dispatch mask, or by number."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.start, self.head, self.gate = (
            nn.Linear(5, WIDTH),
            nn.Linear(WIDTH, 3),
            nn.Linear(WIDTH, EXPERTS, bias=False),
        )
        self.up, self.down = (
            nn.Parameter(torch.randn(EXPERTS, *shape)) for shape in ((WIDTH, 2 * INNER), (INNER, WIDTH))
        )
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        scores = self.gate(x).sigmoid() if self.how == "gated" else self.gate(x).softmax(-1)
        if self.how == "chosen":
            chosen = scores.argmax(-1)
            a, b = torch.bmm(x[:, None], self.up[chosen]).squeeze(1).chunk(2, -1)
            y = torch.bmm((a.sigmoid() * b)[:, None], self.down[chosen]).squeeze(1)
            return self.head(x + y * scores.gather(1, chosen[:, None]))
        if self.how == "dispatch":
            scores = scores * torch.zeros_like(scores).scatter(1, scores.topk(2, -1).indices, 1.0)
        a, b = torch.einsum("nh,ehi->eni", x, self.up).chunk(2, -1)
        y = torch.einsum("eni,eih->neh", a.sigmoid() * b, self.down)
        return self.head(x + torch.einsum("neh,ne->nh", y, scores))


def by_name(space: SearchSpace) -> dict[str, int]:
    return {group.name: group.units for group in space.groups}


HANDMADE: dict[str, Callable[[], nn.Module]] = {
    **{f"list, {how}": (lambda how=how: ModuleList(how)) for how in ("index_add", "index_put", "mask")},
    "list, top 2": lambda: ModuleList("index_add", k=2),
    "list, sized": lambda: ModuleList("index_add", sized=True),
    "list, shared number": lambda: ModuleList("shared number"),
    "parameter lists": Lists,
    **{f"stacked, {how}": (lambda how=how: Stacked(how)) for how in ("mixed", "gated", "dispatch", "chosen")},
}


def holds(model: nn.Module, x: Any, other: Any, tolerance: float = 1e-10) -> SearchSpace:
    """The law on the inputs of the trace and on others, for two random plans."""
    space = niwaki.search_space(model, x)
    single = copy.deepcopy(model)
    for seed in range(2):
        plan = random_plan(space, np.random.default_rng(seed))
        for inputs in (x, other):
            found = deviations(single, plan, inputs)
            assert found["float32"] < 1e-5 and found["eval"] < tolerance and found["train"] < 1e-8, found
    return space


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("name", HANDMADE)
def test_law_on_all_inputs(name: str, tokens: int) -> None:
    """With few tokens some experts are not reached by the trace. With others they are, after the cut."""
    for seed in range(2):
        torch.manual_seed(seed)
        model = randomised(HANDMADE[name]())
        holds(model, torch.randn(tokens, 5), torch.randn(60, 5))


def test_unseen_experts_follow_their_siblings() -> None:
    """Two experts had tokens; the others lose what both of these read, and keep what is their own."""
    torch.manual_seed(0)
    space = holds(randomised(ModuleList("index_add", sized=True)), torch.randn(3, 5), torch.randn(60, 5))
    assert by_name(space) == {"start": WIDTH, "experts.0.up": INNER, "experts.2.up": INNER}
    start = space.groups[0]
    assert {"experts.1.up.weight", "experts.3.down.weight", "experts.3.down.bias"} <= {s.tensor for s in start.slices}
    assert {s.tensor: s.role.produces for s in start.slices}["experts.1.up.weight"] is False
    pinned = {(pin.parameter, pin.dim): pin.reason for pin in space.pins}
    assert pinned["experts.1.up.weight", 0].startswith("no forward pass reached this parameter; give an example call")
    assert ("experts.1.up.weight", 1) not in pinned
    assert space.notes == (
        "No example call reached 8 of the parameters (in experts.1.up, experts.1.down, experts.3.up and 1 more), but "
        "it reached similar ones: the cut network will fit them, and units of their own are not pruned. An example "
        "call that reaches them, with more tokens for instance, makes these units prunable too.",
    )


def test_unseen_parameters_without_siblings_are_listed() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.spare = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu())

    space = niwaki.search_space(Spare(), torch.randn(4, 3))
    assert space.notes == (
        "No example call reached 2 of the parameters (in spare). They are not pruned, and code that uses them may "
        "not fit the cut network: give an example call that reaches them (example_inputs may be a list of calls).",
    )
    assert by_name(space) == {"up": 8}
    pinned = {(pin.parameter, pin.dim): pin.reason for pin in space.pins}
    reason = "no forward pass reached this parameter; give an example call that does"
    assert all(pinned[place] == reason for place in (("spare.weight", 0), ("spare.weight", 1), ("spare.bias", 0)))


def test_whole_experts() -> None:
    """Where all experts answer, one can leave exactly if its gate looks at no other; a softmax over them makes it
    inexact, and so does a router that would choose others. A list of modules stays as long as it is."""
    torch.manual_seed(0)
    x = torch.randn(6, 5)

    def experts(how: str, allow_inexact: bool) -> list[Group]:
        space = niwaki.search_space(randomised(Stacked(how)), x, allow_inexact=allow_inexact)
        return [group for group in space.groups if {"gate.weight", "up", "down"} == {s.tensor for s in group.slices}]

    (exact,) = experts("gated", False)
    assert exact.units == EXPERTS and exact.inexact is None
    assert experts("mixed", False) == []
    (inexact,) = experts("mixed", True)
    assert inexact.units == EXPERTS and inexact.inexact is not None and "_softmax" in inexact.inexact
    assert experts("chosen", False) == []
    (inexact,) = experts("chosen", True)
    assert inexact.units == EXPERTS and inexact.inexact is not None
    topk = niwaki.search_space(ModuleList("index_add"), x, allow_inexact=True)
    (pin,) = (pin for pin in topk.pins if (pin.parameter, pin.dim) == ("gate.weight", 0))
    assert pin.reason == (
        "aten.eq.Scalar computes with positions along it, which are renumbered when some of them are removed"
    )


def test_one_sibling_is_no_evidence() -> None:
    """With one expert seen nobody can tell what it shares with others."""
    torch.manual_seed(0)
    space = niwaki.search_space(randomised(ModuleList("index_add")), torch.randn(1, 5))
    assert by_name(space) == {"experts.0.up": INNER}
    assert any(
        pin.parameter == "start.weight"
        and pin.reason
        == "no forward pass reached experts.1, which may use the same units; give an example call that does"
        for pin in space.pins
    )


def test_a_number_that_unseen_experts_read_stays() -> None:
    torch.manual_seed(0)
    space = niwaki.search_space(randomised(ModuleList("shared number")), torch.randn(3, 5))
    assert by_name(space) == {"start": WIDTH}
    assert "a number that follows it is read by modules that no forward pass reached" in {p.reason for p in space.pins}


def test_siblings_of_other_sizes_are_none() -> None:
    """An unseen expert whose own number says something else than its siblings' holds the width they share."""
    torch.manual_seed(0)
    model = randomised(ModuleList("index_add", sized=True))
    model.experts[1].width = 2 * WIDTH
    space = niwaki.search_space(model, torch.randn(3, 5))
    assert "start" not in by_name(space)
    assert any("experts.1.width differs from the same number of experts.0" in pin.reason for pin in space.pins)


def test_all_seen_experts_have_their_own_units() -> None:
    torch.manual_seed(0)
    space = niwaki.search_space(randomised(ModuleList("index_add", k=EXPERTS)), torch.randn(9, 5))
    assert by_name(space) == {"start": WIDTH, **{f"experts.{i}.up": INNER for i in range(EXPERTS)}}


# ------------------------------------------------------------------------------------------------------- transformers

_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_LATENT = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
_CHOICE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {**_LATENT, **_CHOICE, "n_shared_experts": 1, "n_routed_experts": 8, "n_group": 2, "topk_group": 1}
_PAIRS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ENCODERS = {"vocab_size": 99, "d_model": 32, "num_experts": 4, "router_dtype": "float32", "decoder_start_token_id": 2}


@dataclass(frozen=True)
class Family:
    """A model of transformers, what its tiny config says, a group of units that it must have, and its size."""

    name: str
    config: dict[str, Any]
    group: str
    units: int

    def build(self, seed: int) -> nn.Module:
        load()
        import transformers

        config = getattr(transformers, f"{self.name.split('For')[0]}Config")(**self.config)
        torch.manual_seed(seed)
        return randomised(getattr(transformers, self.name)(config)).eval()

    def tokens(self, length: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        given = {"input_ids": torch.randint(3, 99, (2, length), generator=generator)}
        if "decoder_start_token_id" in self.config:
            given["decoder_input_ids"] = torch.randint(3, 99, (2, length), generator=generator)
        return given


_UP = "model.layers.1.mlp.experts.gate_up_proj"
FAMILIES = [
    Family("MixtralForCausalLM", {**_SIZES, **_PAIRS}, _UP, 24),
    Family(
        "Qwen2MoeForCausalLM", {**_SIZES, **_CHOICE, "num_experts": 4, "shared_expert_intermediate_size": 8}, _UP, 16
    ),
    Family("Qwen3MoeForCausalLM", {**_SIZES, **_CHOICE, "num_experts": 4, "head_dim": 8}, _UP, 16),
    Family("DeepseekV2ForCausalLM", {**_SIZES, **_DEEPSEEK}, _UP, 16),
    Family("DeepseekV3ForCausalLM", {**_SIZES, **_DEEPSEEK}, _UP, 16),
    Family("OlmoeForCausalLM", {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2}, _UP, 24),
    Family("GptOssForCausalLM", {**_SIZES, **_PAIRS, "head_dim": 8}, _UP, 24),
    Family("PhimoeForCausalLM", {**_SIZES, **_PAIRS, "router_jitter_noise": 0.0, "input_jitter_noise": 0.0}, _UP, 24),
    Family("GraniteMoeForCausalLM", {**_SIZES, **_PAIRS}, "model.layers.1.block_sparse_moe.experts.gate_up_proj", 24),
    Family(
        "SwitchTransformersForConditionalGeneration",
        {**_ENCODERS, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
        | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 64}
        | {"dropout_rate": 0.0, "router_jitter_noise": 0.0},
        r"encoder.block.1.layer.1.mlp.experts.expert_\d.wi",
        24,
    ),
    Family(
        "NllbMoeForConditionalGeneration",
        {**_ENCODERS, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "expert_capacity": 64}
        | {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "max_position_embeddings": 64},
        r"model.encoder.layers.1.ffn.experts.expert_\d.fc1",
        24,
    ),
]


@pytest.mark.parametrize(
    ("family", "length"),
    [(family, 16) for family in FAMILIES] + [(family, 1) for family in (FAMILIES[0], *FAMILIES[-2:])],
    ids=lambda value: value.name if isinstance(value, Family) else str(value),
)
def test_transformers(family: Family, length: int) -> None:
    """Expert by expert; with one token most experts are not reached."""
    model = family.build(seed=length)
    implement(model, "eager")
    space = niwaki.search_space(model, family.tokens(length, 1))
    if length > 1:
        assert any(re.fullmatch(family.group, name) and units == family.units for name, units in by_name(space).items())
    plan = random_plan(space, np.random.default_rng(0))
    assert deviations(model, plan, family.tokens(length, 1))["train"] < 1e-8
    assert deviations(model, plan, family.tokens(24, 2), train=False)["eval"] < 1e-10


@pytest.mark.parametrize("family", [FAMILIES[i] for i in (0, 3, 6, 8)], ids=lambda family: family.name)
@pytest.mark.parametrize("how", ["grouped_mm", "batched_mm"])
def test_other_implementations(family: Family, how: str) -> None:
    """The kernel for grouped products wants dimensions that it can read 16 bytes at a time."""
    model = family.build(seed=0)
    implement(model, how)
    space = niwaki.search_space(model, family.tokens(16, 1))
    assert by_name(space)[family.group] == family.units
    plan = random_plan(space, np.random.default_rng(0))
    if how == "grouped_mm":
        assert len(plan.kept[family.group]) % 8 == 0
    found = deviations(model, plan, family.tokens(24, 2))
    assert found["float32"] < 1e-5 and found["eval"] < 1e-10 and found["train"] < 1e-8, found


def test_key_heads_leave_with_their_queries() -> None:
    """Beside the experts: a unit of grouped attention is a head of keys and values with the heads that ask it."""
    family = FAMILIES[0]
    space = niwaki.search_space(family.build(seed=0), family.tokens(16, 1), rehearse=False)
    (heads,) = (group for group in space.groups if group.name == "model.layers.1.self_attn.q_proj")
    owned = {(s.tensor.split(".")[-2], s.dim): s.index.shape for s in heads.slices}
    assert owned == {("q_proj", 0): (2, 16), ("k_proj", 0): (2, 8), ("v_proj", 0): (2, 8), ("o_proj", 1): (2, 16)}


def implement(model: nn.Module, how: str) -> None:
    """Choose how transformers calculates experts."""
    for module in model.modules():
        config = module.__dict__.get("config")
        if config is not None and "_experts_implementation_internal" in vars(config):
            config._experts_implementation = how


# -------------------------------------------------------------------------------------------------- experts that leave

_ROUTED = [FAMILIES[i] for i in (0, 1, 2, 5, 6, 8)]


def _experts(space: SearchSpace) -> list[Group]:
    """The groups whose units are whole experts."""
    return [
        group for group in space.groups if group.inexact and any(s.tensor.endswith("down_proj") for s in group.slices)
    ]


@contextmanager
def masked(model: nn.Module, router: str, removed: list[int]) -> Iterator[None]:
    """As long as this lasts, a router never chooses some of the experts."""
    weight = model.get_parameter(router)
    linear = nn.functional.linear

    def patched(x: Tensor, given: Tensor, bias: Tensor | None = None) -> Tensor:
        made = linear(x, given, bias)
        return made.index_fill(-1, torch.tensor(removed), -torch.inf) if given is weight else made

    nn.functional.linear = patched
    try:
        yield
    finally:
        nn.functional.linear = linear


@pytest.mark.parametrize("how", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("family", _ROUTED, ids=lambda family: family.name)
def test_an_expert_leaves_as_if_the_router_never_chose_it(family: Family, how: str) -> None:
    model = family.build(seed=0)
    implement(model, how)
    space = niwaki.search_space(model, family.tokens(16, 1), allow_inexact=True)
    groups = _experts(space)
    assert [group.units for group in groups] == [4, 4] and all("router" in str(g.inexact) or g.inexact for g in groups)
    (router,) = {s.tensor for s in groups[1].slices if re.search(r"(gate|router|router\.layer)\.weight$", s.tensor)}
    removed = [0, 2]
    keep = np.ones(space.num_units, dtype=bool)
    keep[[groups[1].first + expert for expert in removed]] = False
    small = niwaki.cut(model, space.plan(keep))
    tokens = family.tokens(24, 2)
    with torch.no_grad(), masked(model, router, removed):
        expected = model(**tokens).logits
    with torch.no_grad():
        found = small(**tokens).logits
        dense = model(**tokens).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max() < 1e-2 * (dense - expected).abs().max()


@pytest.mark.parametrize("how", ["grouped_mm", "batched_mm"])
def test_a_router_keeps_as_many_experts_as_it_chooses(how: str) -> None:
    model = FAMILIES[0].build(seed=0)
    implement(model, how)
    space = niwaki.search_space(model, FAMILIES[0].tokens(16, 1), allow_inexact=True)
    keep = np.ones(space.num_units, dtype=bool)
    keep[_experts(space)[0].first : _experts(space)[0].first + 3] = False
    with pytest.raises(PlanError, match="whether enough entries are left to choose from"):
        space.plan(keep)


def test_experts_stay_unless_inexact_units_are_allowed() -> None:
    model = FAMILIES[0].build(seed=0)
    implement(model, "grouped_mm")
    space = niwaki.search_space(model, FAMILIES[0].tokens(16, 1))
    assert _experts(space) == []
    reasons = {(pin.parameter, pin.dim): pin.reason for pin in space.pins}
    router = "model.layers.1.mlp.gate.weight"
    assert "depend on one another" in reasons[router, 0] or "would choose others" in reasons[router, 0]


class Numbered(nn.Module):
    """Chooses rows of a table, and does something else with their numbers, too."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.table, self.use = nn.Linear(5, 6), nn.Parameter(torch.randn(6, 5)), use

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        chosen = self.gate(x).argmax(-1)
        return self.table[chosen], self.use(chosen)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda chosen: chosen * 1.5, "aten.mul.Tensor computes with positions along it, which are renumbered"),
        (lambda chosen: chosen == 2, "aten.eq.Scalar computes with positions along it"),
        (lambda chosen: chosen.view(2, -1), "an output of the model holds positions along it"),
        (lambda chosen: torch.arange(6)[chosen], "it meets a tensor that is computed anew in every call"),
        (lambda chosen: nn.functional.one_hot(chosen, 6), "positions along it"),
        (lambda chosen: chosen.bincount(minlength=7), "positions along it"),
        (lambda chosen: chosen.float().sum(), None),
    ],
)
def test_numbers_that_are_used_otherwise_hold_their_axis(use: Callable[[Tensor], Tensor], reason: str | None) -> None:
    torch.manual_seed(0)
    space = niwaki.search_space(Numbered(use), torch.randn(8, 5), allow_inexact=True)
    assert not space.groups
    pinned = {(pin.parameter, pin.dim): pin.reason for pin in space.pins}
    assert (reason or "positions along it") in pinned["gate.weight", 0], pinned


@pytest.mark.parametrize("rows", [8, 7])
def test_a_table_of_another_size_holds_both(rows: int) -> None:
    """The numbers reach some of its rows only, and which these are would change."""
    torch.manual_seed(0)
    model = Numbered(lambda chosen: torch.ones(1))
    model.table = nn.Parameter(torch.randn(rows, 5))
    space = niwaki.search_space(model, torch.randn(8, 5), allow_inexact=True)
    assert not space.groups
    pinned = {(pin.parameter, pin.dim): pin.reason for pin in space.pins}
    assert pinned["gate.weight", 0] == f"its positions look something up in a dimension of {rows}, not 6"
    assert pinned["table", 0] == "it is looked up by index"


def test_numbers_that_only_look_something_up_do_not() -> None:
    torch.manual_seed(0)
    model = Numbered(lambda chosen: torch.ones(1))
    space = niwaki.search_space(model, torch.randn(8, 5), allow_inexact=True)
    (group,) = space.groups
    assert group.units == 6 and {(s.tensor, s.dim) for s in group.slices} == {
        ("gate.weight", 0),
        ("gate.bias", 0),
        ("table", 0),
    }
    assert niwaki.search_space(model, torch.randn(8, 5)).num_units == 0


def test_a_rule_that_refuses_has_understood_nothing() -> None:
    """It may have asked where positions lie before it found that it cannot go on."""
    model = Numbered(lambda chosen: torch.ones(1))
    graph = trace(model, example_calls(torch.randn(8, 5)), modes=(False,))

    def find(operator: torch._ops.OpOverload) -> Rule | None:
        return refusing if operator is torch.ops.aten.index.Tensor else rules.find(operator)

    def refusing(call: Call) -> Label:
        assert call.places(call["indices"][0]) is not None
        raise Refused("a table of this kind is not followed")

    facts = propagate(graph, find, allow_inexact=True)
    (group,) = Builder(model, graph, propagate(graph, allow_inexact=True)).space().groups
    assert group.units == 6
    assert not Builder(model, graph, facts).space().groups
