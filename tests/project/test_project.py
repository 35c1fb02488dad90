"""What the README promises is what the project does."""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from pathlib import Path

import pytest

import niwaki

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_readme_commands_are_make_targets() -> None:
    commands = re.findall(r"^    make (\w+)$", text("README.md"), flags=re.MULTILINE)
    assert commands == ["demo", "test"]
    for command in commands:
        assert re.search(rf"^{command}:", text("Makefile"), flags=re.MULTILINE), command


def test_ci_runs_the_readme_command() -> None:
    assert "make test\n" in text(".ci/run")
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_every_requirement_has_a_tested_version() -> None:
    pinned = {re.split("==", line)[0] for line in text("constraints.txt").splitlines() if not line.startswith("#")}
    project = tomllib.loads(text("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["train"],
        *project["optional-dependencies"]["zoo"],
        *project["optional-dependencies"]["onnx"],
    ]
    names = {re.split(r"[><=\[]", requirement)[0] for requirement in wanted}
    assert names <= pinned, names - pinned


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    """Names of niwaki, and the files that links lead to."""
    for name in re.findall(r"\bniwaki\.([a-zA-Z_][a-zA-Z0-9_]*)", text(page)):
        assert importlib.util.find_spec(f"niwaki.{name}") or hasattr(niwaki, name), name
    for link in re.findall(r"\]\(([^)]+)\)", text(page)):
        assert (ROOT / page).parent.joinpath(link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_no_page_holds_an_unresolved_merge(page: str) -> None:
    assert not re.findall(r"^(?:<<<<<<<|>>>>>>>).*", text(page), flags=re.MULTILINE)


def test_changelog_knows_the_version() -> None:
    assert f"## {niwaki.__version__}" in text("CHANGELOG.md")


def test_citation_knows_the_version_and_the_methods() -> None:
    citation = text("CITATION.cff")
    assert f"version: {niwaki.__version__}\n" in citation
    named = set(re.findall(r"niwaki\.([A-Za-z0-9_]+)", citation))
    assert all(hasattr(niwaki, name) or importlib.util.find_spec(f"niwaki.{name}") for name in named)
    methods = {"ATO", "ATP", "CRIC", "DHSPG", "H2SPG", "HESSO", "HSPG", "LHSPG", "AdaHSPG", "DDPTraining"}
    assert methods <= named


def test_what_the_source_distribution_includes_exists() -> None:
    lines = [line.split() for line in text("MANIFEST.in").splitlines()]
    for name in (name for command, *names in lines if command in ("graft", "include") for name in names):
        assert (ROOT / name).exists(), name


def test_no_code_depends_on_the_name_of_a_file_or_a_caller() -> None:
    """A renamed file or function must not change what the package does: code is compared by identity or by the
    directory of the library it belongs to, never by a name that is written down."""
    written = re.compile(
        r"""["'][\w/]+\.py["']              # a file of Python code
        | (__name__|__qualname__|co_name|co_filename)["']?\)?\ *(==|!=|in)\ *[({]?["']  # a name that is compared""",
        flags=re.VERBOSE,
    )
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted((ROOT / "niwaki").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if written.search(line) and "__main__" not in line and ">>>" not in line
    ]
    assert not found


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by name: the second one would not be collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
