"""Each kind of edit: two in a row and what is left of one, files of all formats, and what the documentation says."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from saved import TOKENS, Everything

import niwaki
from niwaki.core import edits
from niwaki.core.absent import Container, Fixed, Given, PlainValue, SizeOfArgument, SizeOfTensor, Zeros
from niwaki.core.compose import composed, difference
from niwaki.core.edits import (
    Edit,
    Erase,
    EraseExperts,
    EraseModules,
    Gather,
    Implant,
    Keep,
    KeepDirection,
    MakeConstant,
    NewBias,
    Rescale,
    ScaledBefore,
    Scatter,
    SetAttribute,
    SetScalar,
    Zeroed,
)
from niwaki.core.edits.base import edit_from_data, edit_to_data
from niwaki.core.edits.erase import JoinOperand
from niwaki.core.edits.erase_experts import ExpertList
from niwaki.core.plan import Plan, TensorShape
from niwaki.core.positions import Positions
from niwaki.errors import PlanError

ROOT = Path(__file__).parents[2]
STORED = (ROOT / "tests/files/plan-2/everything/plan.json").read_text()
SHAPES = (TensorShape("a", (8, 4)), TensorShape("b", (8,)))

BRANCH, OTHER = JoinOperand("branch", "add", 1), JoinOperand("other", "add_2", 0)

ZEROS = Zeros((0,), (SizeOfArgument((0,), 0, ((1, -1, 2, 1),)), SizeOfTensor((("a", 1),)), Fixed(2)), written=True)
SAID = Container("tuple", (ZEROS, PlainValue(None), Container("dict", (Given(("x", 0)),), ("same",))))
ONE_HALF = EraseModules(("one",), {"m.0.one": SAID}, ("m.1",), {"m.2": "1"}, ("m.scale",), {("m.2.two", "number"): 1})
OTHER_HALF = EraseModules(("two",), {"m.0.two": ZEROS})
BOTH_HALVES = EraseModules(
    ("one", "two"),
    {"m.0.one": SAID, "m.0.two": ZEROS},
    ("m.1",),
    {"m.2": "1"},
    ("m.scale",),
    {("m.2.two", "number"): 1},
)

FOUR, THREE = ExpertList("m.experts", ("0", "1", "2", "3")), ExpertList("m.experts", ("0", "1", "2"))
ONE_GONE = EraseExperts("b", "m.gate", 4, (0, 1, 3), (FOUR,))
TWO_GONE = EraseExperts("b", "m.gate", 4, (0, 3), (FOUR,))

# By kind: what is done first, what then, and both at once.
ROWS: tuple[tuple[Edit, Edit, Edit | None], ...] = (
    (Keep("a", 0, (1, 3, 4, 7)), Keep("a", 0, (0, 2)), Keep("a", 0, (1, 4))),
    (KeepDirection("a", 1, (0, 2, 3)), KeepDirection("a", 1, (1, 2)), KeepDirection("a", 1, (2, 3))),
    (Rescale("b", 2.0, 1.0), Rescale("b", 4.0, 1.0), Rescale("b", 8.0, 1.0)),
    (SetAttribute("m", "width", (), 4), SetAttribute("m", "width", (), 2), SetAttribute("m", "width", (), 2)),
    (SetScalar("m", "eps", 2.0, True), SetScalar("m", "eps", 4.0, True), SetScalar("m", "eps", 4.0, True)),
    (Erase((BRANCH,), ("b",)), Erase((OTHER,), ("a",)), Erase((BRANCH, OTHER), ("a", "b"))),
    (ONE_HALF, OTHER_HALF, BOTH_HALVES),
    (ONE_GONE, EraseExperts("b", "m.gate", 3, (0, 2), (THREE,)), TWO_GONE),
    (Zeroed((("b", 0),), (1, 2), (1, 2)), Zeroed((("b", 0),), (1, 2), (1, 2)), None),
    (ScaledBefore("b", 2.0, 3.0), ScaledBefore("b", 1.5, 1.0), None),
)
RECORDS = 2  # of these rows change nothing
KINDS = {type(first) for first, _, _ in ROWS} | {
    Gather,
    Implant,
    MakeConstant,
    NewBias,
    Scatter,
}  # with another network behind them: tests/implants, tests/unions, tests/repair
OF_FORMAT_2 = KINDS - {Erase, EraseExperts, EraseModules, Gather, Implant, MakeConstant, NewBias, Scatter, ScaledBefore}


def plan_of(*some: Edit | None) -> Plan:
    return Plan({}, {}, SHAPES, tuple(edit for edit in some if edit is not None))


def test_there_is_a_row_for_each_kind() -> None:
    found = {kind for kind in vars(edits).values() if isinstance(kind, type) and issubclass(kind, Edit)}
    assert (
        found - {edits.Edit, edits.TensorEdit, edits.ModuleEdit, edits.GatedEdit, edits.ReplacingEdit, edits.PlacedEdit}
        == KINDS
    )


@pytest.mark.parametrize(("first", "later", "both"), ROWS, ids=lambda edit: getattr(edit, "kind", "none"))
def test_two_in_a_row(first: Edit, later: Edit, both: Edit | None) -> None:
    assert first.place == later.place
    assert composed(plan_of(first), plan_of(later)).edits == plan_of(both).edits
    for alone in ((first, None), (None, first)):
        expected = plan_of(None if isinstance(first, Zeroed | ScaledBefore) else first).edits
        assert composed(*map(plan_of, alone)).edits == expected
    assert edit_from_data(json.loads(json.dumps(edit_to_data(first)))) == first


def test_sums_with_and_without_scales_hold_until_the_tensor_is_cut() -> None:
    one = ScaledBefore("b", 2.0, 3.0)
    assert difference(plan_of(), plan_of(one)).edits == difference(plan_of(one), plan_of(one)).edits == (one,)
    assert difference(plan_of(Keep("b", 0, (0, 3))), plan_of(Keep("b", 0, (0, 3)), one)).edits == ()
    with pytest.raises(PlanError, match="scales a tensor 'c', which the network it is for does not have"):
        plan_of(ScaledBefore("c", 1.0, 2.0)).check_positions()


@pytest.mark.parametrize(("first", "later", "both"), ROWS[:-RECORDS], ids=lambda edit: getattr(edit, "kind", "none"))
def test_what_is_left_is_what_comes_then(first: Edit, later: Edit, both: Edit) -> None:
    assert difference(plan_of(first), plan_of(both)).edits == (later,)
    assert difference(plan_of(), plan_of(both)).edits == (both,)
    assert difference(plan_of(first), plan_of(first)).edits == ()


BACK: dict[Edit, str | Edit] = {
    ROWS[0][
        0
    ]: r"keeps 4 positions of 'a' \(dimension 0\) that have left this model already, the first of them number 0",
    ROWS[1][
        0
    ]: r"keeps 1 positions of 'a' \(dimension 1\) that have left this model already, the first of them number 1",
    ROWS[2][0]: Rescale("b", 0.5, 1.0),
    ROWS[3][0]: "leaves 'width' of the module 'm' as it was in the dense network, but this model was shrunk and has 4",
    ROWS[4][0]: "leaves 'eps' of the module 'm' as it was in the dense network, but this model was shrunk and has 2.0",
    ROWS[5][0]: "keeps the structure 'branch', which has left this network already",
    ROWS[6][0]: "keeps the structure 'one', which has left this network already",
    ROWS[7][0]: "keeps expert 2 of the router 'b', which has left this network already",
}


@pytest.mark.parametrize("first", BACK, ids=lambda edit: edit.kind)
def test_what_has_been_done_is_not_taken_back_in_silence(first: Edit) -> None:
    expected = BACK[first]
    if isinstance(expected, Edit):
        assert difference(plan_of(first), plan_of()).edits == (expected,)
    else:
        with pytest.raises(PlanError, match=expected):
            difference(plan_of(first), plan_of())


def test_positions_that_left_cannot_come_back() -> None:
    with pytest.raises(PlanError, match="keeps 2 positions of 'a' .* the first of them number 5.* cannot come back"):
        difference(plan_of(Keep("a", 0, (1, 3))), plan_of(Keep("a", 0, (1, 5, 7))))
    with pytest.raises(PlanError, match="keeps 1 positions of 'a' .* number 5"):
        difference(plan_of(Keep("a", 0, ())), plan_of(Keep("a", 0, (5,))))


def test_what_a_method_zeroed_is_numbered_in_what_is_left() -> None:
    kept = {"g": Positions((0, 2, 3, 5))}, {"g": 8}
    done = Plan(*kept, SHAPES, (Keep("b", 0, (0, 2, 3, 5)),))
    plan = replace(done, kept={"g": Positions((0, 5))}, edits=(Keep("b", 0, (0, 5)), ZEROED))
    assert difference(done, plan).edits == (Keep("b", 0, (0, 3)), Zeroed((("b", 0),), (1, 2), (1, 2)))
    assert difference(plan, plan).edits == ()


ZEROED = Zeroed((("b", 0),), Positions((1, 2, 3, 4, 6, 7)), Positions((1, 2, 3, 4, 6, 7)))


def test_states_go_with_a_power_of_the_scale() -> None:
    steps, average = torch.tensor(3), torch.tensor([1.0, 2.0])
    assert torch.equal(Rescale("b", 2.0, 1.0).of_state(average, {0: 0}, lambda: -2), average / 4)
    same = Rescale("b", 2.0, 1.0).of_state(steps, {}, lambda: 0)
    assert same.dtype == torch.int64 and same == 3


def test_a_plan_of_format_2_has_every_kind() -> None:
    plan = Plan.from_json(STORED)
    assert {type(edit) for edit in plan.edits} == OF_FORMAT_2
    data = json.loads(STORED)
    assert plan.tensors == {
        name: {int(dim): tuple(kept) for dim, kept in dims.items()} for name, dims in data["tensors"].items()
    }
    assert [[e.tensor, e.factor, e.shift] for e in plan.edits_of(Rescale)] == data["repairs"]
    assert [[e.module, e.name, e.value, e.epsilon] for e in plan.edits_of(SetScalar)] == data["scalars"]
    assert [[e.tensor, e.dim] for e in plan.edits_of(KeepDirection)] == data["directions"]
    assert [[e.module, e.name, e.value] for e in plan.edits_of(SetAttribute)] == [
        [module, name, value] for module, name, _, value in data["attributes"]
    ]
    assert [edit.to_data() for edit in plan.edits_of(Zeroed)] == data["zeroed_by_method"]


def test_a_plan_made_now_has_the_edits_of_the_stored_one() -> None:
    """But for what the method has zeroed, since none made it."""
    stored, space = Plan.from_json(STORED), niwaki.search_space(Everything(), TOKENS)
    plan = space.plan(space.keep_of(stored))
    made, expected = (sorted(map(str, one.edits)) for one in (plan, stored))
    assert made == [text for text in expected if text not in {str(edit) for edit in stored.edits_of(Zeroed)}]
    assert plan.shapes == stored.shapes and Plan.from_json(stored.to_json()).edits == stored.edits


def test_the_documentation_shows_the_format() -> None:
    page = (ROOT / "docs/files.md").read_text()
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert found is not None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(found[1], {"niwaki": niwaki, "torch": torch})
    assert printed.getvalue() == found[2]
    table = page.split("| edit |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE) == [kind.kind for kind in ORDER]


ORDER: list[type[Edit]] = [
    *(type(first) for first, _, _ in ROWS[:-RECORDS]),
    Implant,
    MakeConstant,
    NewBias,
    Scatter,
    Gather,
    Zeroed,
    ScaledBefore,
]
