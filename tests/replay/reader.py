"""What is recorded of a network. This is the only file of the replay that knows names of niwaki.

All is whole numbers and words. The choices cannot depend on how a machine rounds: one is by a permutation of whole
numbers, the others by the sizes of weights that are whole numbers, whose squares add up exactly.
"""

from __future__ import annotations

import hashlib
import json
import linecache
import os
import re
from fractions import Fraction
from typing import Any

import numpy as np
import torch

import niwaki
from niwaki.core.tensor_dims import Role

_LINE = re.compile(r"""(?P<file>[^\s'"()]+\.py):(?P<line>\d+)""")
_LARGEST = 4  # of the weights: in float32, sums of their squares are exact up to a million entries


def record(model: Any, inputs: Any, **options: Any) -> dict[str, Any]:
    """All that is found in ``model``, and three choices of units, as plain data."""
    space = niwaki.search_space(model, inputs, **options)
    groups = [
        {
            "name": group.name,
            "units": group.units,
            "inexact": group.inexact and words(group.inexact),
            "slices": [_slice(it) for it in group.slices],
        }
        for group in space.groups
    ]
    return {
        "groups": groups,
        "pins": [words(str(pin)) for pin in space.pins],
        "ties": [f"{list(tie.groups)} in steps of {list(tie.steps)}, at most {tie.most}" for tie in space.ties],
        "notes": [words(note) for note in space.notes],
        "coverage": _exact(space.coverage),
        "cost": _cost(space.cost()),
        "least cost": _cost(space.least_cost()),
        "plans": _plans(space),
    }


def _plans(space: niwaki.SearchSpace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    drawn = rng.permutation(space.num_units) + 1.0
    random = niwaki.score(space, lambda space: drawn)
    whole = torch.Generator().manual_seed(0)
    parameters = list(space.model.parameters())
    with torch.no_grad():
        for parameter in parameters:
            if not parameter.is_meta:
                parts = torch.view_as_real(parameter) if parameter.is_complex() else parameter
                parts.copy_(torch.randint(-_LARGEST, _LARGEST + 1, parts.shape, generator=whole))
    without_weights = any(parameter.is_meta for parameter in parameters)
    weights = random if without_weights else niwaki.score(space, "magnitude")
    dense, least = space.cost(), space.least_cost()
    params, macs = ((most + fewest) // 2 for most, fewest in ((dense.params, least.params), (dense.macs, least.macs)))
    even = niwaki.Budget(params=(3 * dense.params + least.params) // 4, round_to=2, min_units=2)
    return {
        "drawn, half of the parameters that can leave": _plan(space, random, niwaki.Budget(params=params), "space"),
        "magnitude, half of the MACs that can leave": _plan(space, weights, niwaki.Budget(macs=macs), "group"),
        "magnitude, multiples of 2": _plan(space, weights, even, "isomorphic"),
    }


def _plan(space: niwaki.SearchSpace, scores: Any, budget: niwaki.Budget, compare: Any) -> dict[str, Any] | str:
    try:
        plan = niwaki.choose(space, scores, budget, compare=compare)
    except niwaki.NiwakiError as error:
        return f"refused: {type(error).__name__}"
    data = json.loads(plan.to_json())
    edits: dict[str, list[Any]] = {}
    for edit in data["edits"]:
        edits.setdefault(edit["edit"], []).append(edit)
    directions = edits.pop("keep direction", [])
    tensors: dict[str, dict[str, list[int]]] = {}
    for edit in (*edits.pop("keep", []), *directions):
        tensors.setdefault(edit["tensor"], {})[str(edit["dim"])] = edit["kept"]
    return {
        "kept": {name: _runs(group["kept"]) for name, group in data["groups"].items()},
        "tensors": _digest(tensors),
        "attributes": _by_module(edits.pop("set attribute", [])),
        "repairs": [
            f"{edit['tensor']} * {_exact(edit['factor'])}, shift {_exact(edit['shift'])}"
            for edit in edits.pop("rescale", [])
        ],
        "scalars": [
            f"{edit['module']}.{edit['name']} = {_exact(edit['value'])}, {edit['epsilon']}"
            for edit in edits.pop("set scalar", [])
        ],
        "directions": [f"{edit['tensor']} dim {edit['dim']}" for edit in directions],
        "cost": _cost(space.cost(plan)),
    } | {f"edits of kind {kind}": found for kind, found in edits.items()}


def _by_module(edits: list[Any]) -> dict[str, str]:
    made: dict[str, list[str]] = {}
    for edit in edits:
        where = "" if edit["where"] is None else json.dumps(edit["where"])
        made.setdefault(edit["module"], []).append(f"{edit['name']}{where} = {edit['value']}")
    return {module: ", ".join(texts) for module, texts in made.items()}


def _slice(it: Any) -> str:
    flags = [
        name
        for name, holds in (
            ("produces", it.role.produces),
            ("driven", it.role.zeroed_by_method),
            ("direction", it.role is Role.DIRECTION),
            ("parameter", it.parameter),
        )
        if holds
    ]
    units, each = it.index.shape
    return f"{it.tensor} dim {it.dim}: {units} x {each} = {_runs(it.index.ravel().tolist())}; {', '.join(flags)}"


def _cost(cost: Any) -> str:
    return f"{cost.params} parameters, {cost.macs} MACs, {cost.memory} bytes, {cost.activations} bytes of activations"


# ------------------------------------------------------------------------------- plain data, knows nothing of niwaki


def words(text: str) -> str:
    """``text`` with the source itself in place of line numbers, and no path of this machine."""
    return _LINE.sub(lambda found: _source(found["file"], int(found["line"])), text)


def _source(file: str, line: int) -> str:
    code = linecache.getline(file, line).strip() if os.path.exists(file) else ""
    _, found, library = file.rpartition("site-packages/")
    return f"{library if found else 'the network'}: `{code}`"


def _exact(number: float) -> str:
    """A ratio of small whole numbers as such (also the root of one), another number in nine digits."""
    for power, text in ((1, "{}"), (2, "sqrt({})")):
        ratio = Fraction(number**power).limit_denominator(10**6)
        if abs(float(ratio) - number**power) <= 1e-13 * max(1.0, abs(number**power)):
            return text.format(ratio)
    return f"{number:.9g}"


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _runs(numbers: list[int]) -> str:
    """``[0, 1, 2, 7, 9, 11]`` as ``0-2 7-11/2``."""
    runs: list[list[int]] = []  # first, last, step (0 where there is but one)
    for number in numbers:
        if runs and (step := number - runs[-1][1]) == runs[-1][2] != 0:
            runs[-1][1] = number
        elif runs and not runs[-1][2] and step > 0 and (step == 1 or len(numbers) > _LARGEST):
            runs[-1][1:] = [number, step]
        else:
            runs.append([number, number, 0])
    return " ".join(
        str(first) if not step else f"{first}-{last}" + (f"/{step}" if step > 1 else "") for first, last, step in runs
    )
