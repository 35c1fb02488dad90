"""Compare reference networks with what is stored, or store what is found.

PYTHONPATH=tests:tests/helpers python -m replay [--write] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from replay.networks import REFERENCES
from replay.stored import FOLDER, differences, found, path_of, stored


def main() -> int:
    """Print each difference; with ``--write``, store what is found. Returns how many networks are different."""
    parser = argparse.ArgumentParser(prog="python -m replay", description=__doc__)
    parser.add_argument("--write", action="store_true", help="store what is found, instead of only comparing")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; all if none is given")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in REFERENCES]
    if unknown:
        parser.error(f"there is no reference network {', '.join(unknown)}; there are {', '.join(REFERENCES)}")
    torch.set_num_threads(1)
    changed = 0
    for name in options.names or REFERENCES:
        if (missing := REFERENCES[name].missing()) is not None:
            print(f"{name}: skipped, {missing}")
            continue
        new = found(name)
        different = list(differences(stored(name), new))
        changed += bool(different)
        for difference in different:
            print(f"{name}: {difference}")
        if options.write and different:
            FOLDER.mkdir(exist_ok=True)
            path_of(name).write_text(json.dumps(new, indent=1) + "\n")
    for path in sorted(FOLDER.glob("*.json")) if options.write else ():
        if path.stem not in REFERENCES:
            path.unlink()
            print(f"{path.stem}: removed")
    print(f"{changed} networks are different{' and stored anew' if options.write and changed else ''}")
    return 0 if options.write else min(changed, 1)


if __name__ == "__main__":
    sys.exit(main())
