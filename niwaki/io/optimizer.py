"""Save and load the state of an optimizer, by the names of its parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.names import named_parameters
from niwaki.errors import FileFormatError
from niwaki.io.format import OPTIMIZER_FILE
from niwaki.io.reading import file_of, read_description, read_tensors
from niwaki.io.tree import decode, encode
from niwaki.io.writing import Part, tensors_part


def optimizer_part(optimizer: Optimizer, small: nn.Module) -> Part:
    """The file of an optimizer of the parameters of ``small``.

    Raises:
        FileFormatError: it trains other parameters, or its state cannot be saved.
    """
    names = _names(optimizer, small)
    saved = optimizer.state_dict()
    numbers = _numbers(saved, names)
    for number in saved["state"]:
        if number not in numbers:
            raise FileFormatError(
                f"The optimizer has state under {number!r}, which is not one of the parameters it trains, so it "
                "cannot be saved with the network."
            )
    tensors: dict[str, Tensor] = {}
    rest = {key: value for key, value in saved.items() if key not in ("state", "param_groups")}
    groups = [{**group, "params": [numbers[number] for number in group["params"]]} for group in saved["param_groups"]]
    content = {
        "state": {numbers[number]: state for number, state in saved["state"].items()},
        "param_groups": groups,
        "rest": rest,
    }
    tree = encode(content, "optimizer", tensors)
    shapes = {name: list(parameter.shape) for name, parameter in named_parameters(small)}
    return tensors_part(tensors, kind=_kind(optimizer), shapes={n: shapes[n] for n in numbers.values()}, tree=tree)


def load_optimizer(optimizer: Optimizer, small: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Give an optimizer of a loaded network the state that `niwaki.save` wrote with it, bit by bit.

    Args:
        optimizer: freshly built, of the same class and with the same parameters in its groups as the saved one, in any
            order within each group. A method that is attached to it gets its state back too.
        small: the network from `niwaki.load` whose parameters it trains.
        directory: the directory that ``niwaki.save(..., optimizer=...)`` wrote.

    Raises:
        FileFormatError: no optimizer was saved, it is damaged, or it is of another class or of other parameters. The
            optimizer is not changed then.

    Example:
        >>> import tempfile, torch, niwaki
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net = network()
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> small = niwaki.cut(net, plan)
        >>> optimizer = torch.optim.AdamW(small.parameters())
        >>> small(torch.randn(3, 4)).sum().backward()
        >>> optimizer.step()
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     niwaki.save(small, directory, optimizer=optimizer)
        ...     again = niwaki.load(network(), directory)
        ...     fresh = torch.optim.AdamW(again.parameters())
        ...     niwaki.load_optimizer(fresh, again, directory)
        >>> torch.equal(fresh.state[again[0].weight]["exp_avg"], optimizer.state[small[0].weight]["exp_avg"])
        True
    """
    source = Path(directory)
    _, data = read_description(source)
    if "optimizer" not in data:
        raise FileFormatError(
            f"{str(source)!r} holds no optimizer. Save it with niwaki.save(small, directory, optimizer=optimizer)."
        )
    about, path = data["optimizer"], file_of(source, data, "optimizer")
    tensors = read_tensors(path, about)
    if (kind := about.get("kind")) != _kind(optimizer):
        raise FileFormatError(f"{str(path)!r} holds the state of {kind}, not of {_kind(optimizer)}.")
    names = _names(optimizer, small)
    current = optimizer.state_dict()
    numbers = {name: number for number, name in _numbers(current, names).items()}
    try:
        content = decode(about["tree"], tensors)
        _check_shapes(about["shapes"], _shapes(small, numbers), path)
        groups = _groups(content["param_groups"], names, current, numbers, path)
        state = {numbers[name]: dict(value) for name, value in content["state"].items()}
        new = {"state": state, "param_groups": groups, **content["rest"]}
        _put(optimizer, small, new, content["state"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as cause:
        raise FileFormatError(
            f"{str(source)!r} does not describe its {OPTIMIZER_FILE} as niwaki.save does: "
            f"{type(cause).__qualname__}: {cause}. It was damaged or made by hand."
        ) from cause


def _put(optimizer: Optimizer, small: nn.Module, new: dict[str, Any], saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Load a ``state_dict``, or restore the optimizer after an error: torch checks the state only after it has replaced
    it."""
    before = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    try:
        optimizer.load_state_dict(new)
        keep_dtypes(optimizer, dict(named_parameters(small)), saved)
    except BaseException:
        optimizer.__dict__.update(before)
        raise


def _kind(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _names(optimizer: Optimizer, small: nn.Module) -> list[list[str]]:
    """The names of the parameters of each group."""
    known = {id(parameter): name for name, parameter in named_parameters(small)}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in known:
                raise FileFormatError(
                    f"The optimizer trains a parameter of shape {list(parameter.shape)} that this network does not "
                    "have. Build it from the parameters of the network that is saved or loaded with it."
                )
    return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _numbers(saved: Mapping[str, Any], names: list[list[str]]) -> dict[int, str]:
    """The parameter name for each number of a ``state_dict``."""
    return {
        number: name
        for group, known in zip(saved["param_groups"], names, strict=True)
        for number, name in zip(group["params"], known, strict=True)
    }


def _shapes(small: nn.Module, numbers: Mapping[str, int]) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in named_parameters(small) if name in numbers}


def _check_shapes(saved: Mapping[str, list[int]], here: Mapping[str, list[int]], path: Path) -> None:
    for name in sorted({*saved, *here}):
        if saved.get(name) != here.get(name):
            raise FileFormatError(
                f"{str(path)!r} holds the state of {name!r} with shape {saved.get(name, 'none')}, but the optimizer "
                f"to load into trains it with shape {here.get(name, 'none')}. Build it with the parameters that the "
                "saved one had."
            )


def _groups(
    saved: list[dict[str, Any]],
    names: list[list[str]],
    current: Mapping[str, Any],
    numbers: Mapping[str, int],
    path: Path,
) -> list[dict[str, Any]]:
    """The saved groups with the parameter numbers of the optimizer to load into, in its order."""
    if [sorted(group["params"]) for group in saved] != [sorted(known) for known in names]:
        raise FileFormatError(
            f"The optimizer saved in {str(path)!r} has its parameters in other groups: "
            f"{[len(group['params']) for group in saved]} parameters in each, and {[len(known) for known in names]} "
            "here. Build it with the groups of the saved one."
        )
    return [
        {**now, **group, "params": now["params"]} for group, now in zip(saved, current["param_groups"], strict=True)
    ]


def keep_dtypes(
    optimizer: Optimizer, parameters: Mapping[Any, nn.Parameter], saved: Mapping[Any, Mapping[str, Any]]
) -> None:
    """Restore the dtype of loaded state: torch casts it to the dtype of the parameter."""
    for name, state in saved.items():
        here = optimizer.state[parameters[name]]
        for key, value in state.items():
            if isinstance(value, Tensor) and isinstance(now := here.get(key), Tensor) and now.dtype != value.dtype:
                here[key] = value.to(now.device)
