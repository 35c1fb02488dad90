"""Save an exported program as JSON and tensors, and load it, without the code of the model and without pickle."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from niwaki.errors import FileFormatError, first_line
from niwaki.io.format import PROGRAM_FILE
from niwaki.io.reading import file_of, read_description, read_tensors, read_text
from niwaki.io.state import State, contiguous, fill_state, identity
from niwaki.io.writing import Part, tensors_part

# The functions that a program may call besides operators: arithmetic with sizes.
_SIZES = frozenset(
    {
        f"_operator.{name}"
        for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv")
    }
    | {f"_operator.{name}" for name in ("mod", "pow", "truediv", "and_", "or_", "lshift", "rshift", "getitem")}
    | {f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt")}
    | {"math.trunc"}
)
_OPERATOR = re.compile(r"torch\.ops\.(?!__)\w+\.((?!__)\w+|__i?(and|or|xor|lshift|rshift)__)(\.(?!__)\w+)?")
# Sizes are written by sympy and read by evaluating the text: only these names and numbers may be in it.
_SYMBOL = re.compile(r"'[a-z]+\d+'")
_NUMBER = re.compile(r"\d+(\.\d*)?(e-?\d+)?")
_NAME = re.compile(r"[A-Za-z]\w*")
_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Max Min Mod Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan "
    "LessThan StrictGreaterThan GreaterThan And Or Not Piecewise ExprCondPair true false True False positive integer "
    "nonnegative negative nonzero real finite precision evaluate FloorDiv ModularIndexing Where PythonMod CleanDiv "
    "CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat TruncToInt "
    "RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator BooleanTrue BooleanFalse".split()
)

_TENSORS = ("serialize_state_dict", "serialize_constants", "serialize_example_inputs")


def constants_of(program: ExportedProgram) -> dict[str, Tensor]:
    """The tensors of a program outside its ``state_dict``.

    Raises:
        FileFormatError: a constant is not a tensor.
    """
    found: dict[str, Tensor] = {}
    for name, value in program.constants.items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                f"Cannot save the program: its constant {name!r} is a {type(value).__qualname__}, and safetensors "
                "files hold tensors only."
            )
        found[name] = value
    return found


def program_parts(program: ExportedProgram, state: State, is_network: bool) -> dict[str, Part]:
    """The files of a program; its tensors that are in ``state`` are saved already.

    Raises:
        FileFormatError: it has parameters that the network does not have, or cannot be written as JSON.
    """
    constants = constants_of(program)
    named = {**program.state_dict, **constants}
    known = {key: name for name, tensor in state.tensors.items() if (key := identity(tensor)) is not None}
    shared, own = {}, {}
    for name, tensor in named.items():
        if (key := identity(tensor)) is not None and key in known:
            shared[name] = known[key]
        elif is_network and name in state.tensors:
            shared[name] = name
        elif isinstance(tensor, nn.Parameter):
            raise FileFormatError(
                f"The program is of another network: its parameter {name!r} is not one of the network that is saved "
                "with it. Export this network: torch.export.export(small, ...)."
            )
        else:
            own[name] = tensor.detach()
    about = {
        "state_dict": list(program.state_dict),
        "constants": list(constants),
        "shared": shared,
        "parameters": {name: t.requires_grad for name, t in named.items() if isinstance(t, nn.Parameter)},
        "devices": {name: str(tensor.device) for name, tensor in named.items() if tensor.device.type != "cpu"},
    }
    return {"program": Part(_to_json(program), about), "constants": tensors_part(contiguous(own))}


def load_program(directory: str | os.PathLike[str]) -> ExportedProgram:
    """The exported program that ``niwaki.save(..., program=...)`` wrote, without any code of the model.

    ``load_program(directory).module()`` runs. Nothing is unpickled or evaluated, but running a program runs its
    operators: run those of people you trust. It was written by a version of torch, and another version may not know all
    of its operators.

    If inputs or outputs have classes of a library, such as transformers, that library must be imported; a model
    exported with ``return_dict=False`` and ``use_cache=False`` does not need it.

    Args:
        directory: the directory that `niwaki.save` wrote.

    Raises:
        FileFormatError: no program was saved, it is damaged, or this version of torch cannot read it.

    Example:
        >>> import tempfile, torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> x = torch.randn(3, 4)
        >>> space = niwaki.search_space(net, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> small = niwaki.cut(net, plan)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     niwaki.save(small, directory, program=torch.export.export(small, (x,)))
        ...     program = niwaki.load_program(directory)
        >>> torch.equal(program.module()(x), small(x))
        True
    """
    source = Path(directory)
    _, data = read_description(source)
    if not {"program", "constants"} <= data.keys():
        raise FileFormatError(
            f"{str(source)!r} holds no program. Save it with niwaki.save(small, directory, "
            "program=torch.export.export(small, example_inputs))."
        )
    path, about = file_of(source, data, "program"), data["program"]
    text = read_text(path, about)
    saved = read_tensors(file_of(source, data, "weights"), data["weights"])
    own = read_tensors(file_of(source, data, "constants"), data["constants"])
    try:
        from torch._export.serde.serialize import SerializedArtifact, deserialize  # it takes two seconds

        content = json.loads(text)
        check_program(content)
        made: dict[tuple[bool, str], Tensor] = {}
        named = {name: _made(name, about, saved, own, made) for name in (*about["state_dict"], *about["constants"])}
        state, constants = ({name: named[name] for name in about[key]} for key in ("state_dict", "constants"))
        return deserialize(SerializedArtifact(text.encode(), state, constants, None))  # type: ignore[arg-type]
    except Exception as cause:
        raise FileFormatError(
            f"{str(path)!r} cannot be read as a program by torch {torch.__version__}: {type(cause).__qualname__}: "
            f"{first_line(cause)}. It was written by another version of torch, or made by hand."
        ) from cause


def fill_program(program: ExportedProgram, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    """Copy saved tensors into a program that has just been cut."""
    outside = {name: tensors[name] for name in about.get("buffers", ())}
    constants = constants_of(program)
    for name in sorted({*outside, *constants}):
        here, there = constants.get(name), outside.get(name)
        if here is None or there is None or here.shape != there.shape:
            raise FileFormatError(f"The constant {name!r} of this program is not the one that {str(path)!r} holds.")
    for name, value in program.state_dict.items():
        if name in tensors and tensors[name].dtype != value.dtype:
            raise FileFormatError(
                f"{str(path)!r} holds {name!r} as {tensors[name].dtype}, but this program computes with {value.dtype}. "
                "Export the network in the dtype it was saved in."
            )
    inside = {name: tensor for name, tensor in tensors.items() if name not in outside}
    fill_state(program.state_dict, inside, about.get("tied", {}), path)
    with torch.no_grad():
        for name, saved in outside.items():
            constants[name].copy_(saved)


def check_program(content: Any) -> None:
    """Raise `ValueError` unless a program calls operators and arithmetic only, and its sizes are expressions of
    sizes."""
    if not isinstance(content, dict) or content.get("guards_code"):
        raise ValueError("it holds Python code")
    for key, value in _texts(content):
        if key == "target" and not (value in _SIZES or _OPERATOR.fullmatch(value)):
            raise ValueError(f"it calls {value!r}, which is not an operator")
        if key == "expr_str" and not _is_size(value):
            raise ValueError(f"{value!r} is not a size")


def _is_size(text: str) -> bool:
    rest = _SYMBOL.sub(" ", text)
    names = _NAME.findall(_NUMBER.sub(" ", rest))
    rest = _NAME.sub(" ", _NUMBER.sub(" ", rest))
    return set(names) <= _FUNCTIONS and set(rest) <= set(" (),=+-*/<>")


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key, inner
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _to_json(program: ExportedProgram) -> str:
    try:
        from torch._export.serde.serialize import serialize  # it takes two seconds

        # Only the text is used; versions of torch that cannot skip the tensors serialise them in vain.
        known = inspect.signature(serialize).parameters
        lean: dict[str, Any] = {name: False for name in _TENSORS if name in known}
        artifact = serialize(program, **lean)
        content = json.loads(artifact.exported_program)
        content["guards_code"] = []  # Python code, which would be evaluated
        for node in _nodes(content):
            node["metadata"].pop("stack_trace", None)  # the paths of the machine of the export
        check_program(content)
        return json.dumps(content, separators=(",", ":"))
    except Exception as cause:
        raise FileFormatError(
            f"Cannot save the program to {PROGRAM_FILE}: {type(cause).__qualname__}: "
            f"{first_line(cause)}. Save the network without its program."
        ) from cause


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("metadata"), dict) and "target" in value:
            yield value
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


def _made(
    name: str, about: Mapping[str, Any], saved: Mapping[str, Tensor], own: Mapping[str, Tensor], made: dict[Any, Tensor]
) -> Tensor:
    """The tensor of a name in the program; names that shared a tensor share it again."""
    shared = about["shared"].get(name)
    key = (shared is None, name if shared is None else shared)
    if key not in made:
        tensor = own[name] if shared is None else saved[shared]
        tensor = tensor.to(about["devices"].get(name, "cpu"))
        trains = about["parameters"].get(name)
        made[key] = tensor if trains is None else nn.Parameter(tensor, requires_grad=bool(trains))
    return made[key]
