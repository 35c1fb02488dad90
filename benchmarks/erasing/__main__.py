"""What erasing promises, measured.

python -m benchmarks.erasing fuzz --networks 10000
python -m benchmarks.erasing law --plans 200 [--only llama t5]
python -m benchmarks.erasing zoo [--zoo timm] [--read]
python -m benchmarks.erasing analysis
python -m benchmarks.erasing latency --seeds 3 [--steps 100 --criteria mix --data DIR]
python -m benchmarks.erasing worth --task stories --data DIR
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.erasing import analysis, fuzz, latency, law, worth, zoo
from benchmarks.erasing.networks import LARGE, NETWORKS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.erasing", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    random = commands.add_parser("fuzz", help="the law on random networks")
    random.add_argument("--networks", type=int, default=10_000)
    random.add_argument("--first", type=int, default=0, help="the number of the first network")
    random.add_argument("--plans", type=int, default=4, help="random plans per network")
    random.add_argument("--forms", nargs="*", default=list(fuzz.FORMS), choices=fuzz.FORMS, help="what is cut")
    random.add_argument("--out", type=Path, default=Path("out/erasing/fuzz"), help="rows, and scripts of failures")
    known = commands.add_parser("law", help="the law on known networks")
    known.add_argument("--plans", type=int, default=200, help="random plans per network and form")
    known.add_argument("--only", nargs="*", default=[*NETWORKS, *LARGE], choices=[*NETWORKS, *LARGE], metavar="NETWORK")
    known.add_argument("--forms", nargs="*", default=list(law.FORMS), choices=law.FORMS)
    zoos = commands.add_parser("zoo", help="structures of the models of timm and transformers")
    zoos.add_argument("--zoo", nargs="*", choices=zoo.ZOOS, default=list(zoo.ZOOS))
    zoos.add_argument("--every", type=int, default=1, help="look at every n-th model only")
    zoos.add_argument("--plans", type=int, default=4, help="random plans, on every tenth model")
    zoos.add_argument("--jobs", type=int, default=1, help="processes at once")
    zoos.add_argument("--seconds", type=float, default=180.0, help="cap on the CPU time of a model")
    zoos.add_argument("--gigabytes", type=float, default=6.0, help="memory cap per model")
    zoos.add_argument("--read", action="store_true", help="only the table of the rows in --out")
    zoos.add_argument("--out", type=Path, default=Path("out/erasing/zoo"), help="rows, and a log per model")
    cost = commands.add_parser("analysis", help="what erase=True costs, and checking ten thousand candidates")
    cost.add_argument("--rounds", type=int, default=7)
    times = commands.add_parser("latency", help="ResNet-20 at 30 % of the MACs: depth and width beside width alone")
    times.add_argument("--seeds", type=int, default=3)
    times.add_argument("--criteria", nargs="*", default=["magnitude", "random"], help="names, and mix for HESSO's")
    times.add_argument("--steps", type=int, default=0, help="of training before, of the first of recipe A")
    times.add_argument("--data", type=Path, default=None, help="the folder of the data, for --steps")
    times.add_argument("--seconds", type=float, default=10.0, help="of measuring, per choice of scores and seed")
    lost = commands.add_parser("worth", help="scores of structures beside the loss of a trained network without each")
    lost.add_argument("--task", default="fashion-super-resnet", help="of benchmarks.accuracy, with structures")
    lost.add_argument("--steps", type=int, default=200, help="of training before, of the first of its recipe")
    lost.add_argument("--macs", type=float, default=0.51, help="share to keep of what is chosen by each score")
    lost.add_argument("--data", type=Path, default=None, help="the folder of the data")
    options = parser.parse_args()
    if options.command == "fuzz":
        fuzz.run(options.networks, options.first, options.plans, options.forms, options.out)
    if options.command == "zoo":
        zoo.sweep(options)
    if options.command == "analysis":
        analysis.run(options.rounds)
    if options.command == "worth":
        worth.run(options.task, options.steps, options.macs, options.data)
    if options.command == "latency" and not latency.run(
        options.seeds, options.criteria, options.seconds, options.steps, options.data
    ):
        sys.exit(1)
    if options.command == "law" and not law.run(options.only, options.forms, options.plans):
        sys.exit(1)


if __name__ == "__main__":
    main()
