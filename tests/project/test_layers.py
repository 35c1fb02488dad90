"""Arrows point down: every import inside niwaki goes to a layer below the importing one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import niwaki

ROOT = Path(niwaki.__file__).parent

# From the ground up. A module may import from its own row's package and from all rows above it, never from below.
LAYERS: list[set[str]] = [
    {"errors", "version"},
    {"core"},
    {"trace"},
    {"networks", "program", "rules"},
    {"per_unit"},
    {"criteria"},
    {"surgery"},
    {"io", "repair", "solve", "verify"},
    {"erasing", "selection"},
    {"implants", "unions"},
    {"masks"},
    {"huggingface", "methods", "search"},
    {"performance"},
    {"choosing", "integrations", "testing"},
    {"post_training"},
    {"report"},
    {"__init__"},
    {"train"},
    {"cli"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    """`niwaki/core/plan.py` -> `core`, `niwaki/io.py` -> `io`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> list[tuple[int, str]]:
    """Line numbers and top-level niwaki modules that a file imports at any depth, except for type checking only."""
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide where an arrow points"
            if node.module == "niwaki":
                for alias in node.names:
                    found.append((node.lineno, alias.name if alias.name in HEIGHT else "__init__"))
            elif node.module and node.module.startswith("niwaki."):
                found.append((node.lineno, node.module.split(".")[1]))
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "niwaki":
                    found.append((node.lineno, "__init__"))
                elif alias.name.startswith("niwaki."):
                    found.append((node.lineno, alias.name.split(".")[1]))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def test_every_module_has_a_layer() -> None:
    unknown = {module_name(path) for path in ROOT.rglob("*.py")} - set(HEIGHT)
    assert not unknown, f"give {sorted(unknown)} a row in LAYERS"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    here = module_name(path)
    for line, there in imported(path):
        assert there == here or HEIGHT[there] < HEIGHT[here], (
            f"{path.relative_to(ROOT)}:{line}: {here} imports {there}, which lies not below it"
        )


def test_every_folder_says_what_it_is_for() -> None:
    for init in ROOT.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text()))
        assert text, f"{init.relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in ROOT.glob("*/__init__.py")), ids=lambda path: path.name
)
def test_every_folder_says_what_it_imports(folder: Path) -> None:
    """As in "Imports core, trace and rules.": from the ground up; ``niwaki`` stands for the public names."""
    found = {there for path in folder.rglob("*.py") for _, there in imported(path)} - {folder.name, "errors", "version"}
    names = ["niwaki" if name == "__init__" else name for name in sorted(found, key=lambda name: (HEIGHT[name], name))]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "nothing"
    text = " ".join((ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").split())
    assert re.findall(r"\bImports ([\w, ]+)\.", text) == [listed], f'{folder.name} must say: "Imports {listed}."'


def test_no_test_file_imports_another() -> None:
    found = []
    for path in Path(__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            if any(name.rpartition(".")[2].startswith("test_") for name in names):
                found.append(f"{path.name}:{node.lineno}")
    assert not found, f"move what {found} import from test files to tests/helpers"


def test_no_two_classes_have_the_same_name() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_the_top_level_has_few_files() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 7, "give a new file the room it belongs to"
