"""What the analysis and the choice find in reference networks is exactly what is stored (see tests/replay)."""

from __future__ import annotations

import pytest
from replay.__main__ import main
from replay.networks import REFERENCES
from replay.reader import words
from replay.stored import FOLDER, differences, found, stored

_SHOWN = 5


@pytest.mark.parametrize("name", REFERENCES)
def test_nothing_has_changed(name: str) -> None:
    if (missing := REFERENCES[name].missing()) is not None:
        pytest.skip(missing)
    different = list(differences(stored(name), found(name)))
    if different:
        shown = "\n".join(different[:_SHOWN])
        pytest.fail(
            f"{name}: {len(different)} entries are not what is stored. If that is meant, store them with "
            f"`PYTHONPATH=tests:tests/helpers python -m replay --write {name}`.\n{shown}",
            pytrace=False,
        )


def test_each_stored_record_has_a_network() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(REFERENCES)


def test_a_difference_says_where_and_what() -> None:
    old = {"groups": [{"name": "a", "units": 8}], "pins": ["x"], "cost": "1"}
    new = {"groups": [{"name": "a", "units": 6}], "pins": ["x", "y"], "cost": "1"}
    assert list(differences(old, new)) == [
        "groups[0] / units\n    stored: 8\n    found:  6",
        "pins: 1 entries were stored, 2 are found",
    ]
    assert list(differences(old, old)) == []


def test_lines_are_named_by_their_source() -> None:
    here = f"it is at {__file__}:1 (in 'a')"
    assert words(here).startswith('it is at the network: `"""What the analysis')
    assert words("/x/site-packages/timm/layers/mlp.py:9 (in 'a')").startswith("timm/layers/mlp.py: `")


def test_an_unknown_name_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["replay", "absent"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no reference network absent; there are sequential, " in capsys.readouterr().err
