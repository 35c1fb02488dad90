"""What erasing promises, measured.

python -m benchmarks.erasing fuzz --networks 10000
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.erasing import fuzz


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.erasing", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    random = commands.add_parser("fuzz", help="the law on random networks")
    random.add_argument("--networks", type=int, default=10_000)
    random.add_argument("--first", type=int, default=0, help="the number of the first network")
    random.add_argument("--plans", type=int, default=4, help="random plans per network")
    random.add_argument("--out", type=Path, default=Path("out/erasing/fuzz"), help="rows, and scripts of failures")
    options = parser.parse_args()
    if options.command == "fuzz":
        fuzz.run(options.networks, options.first, options.plans, options.out)


if __name__ == "__main__":
    main()
