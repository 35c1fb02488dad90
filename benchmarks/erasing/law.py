"""The law on known networks: random valid erasures, alone and with random widths, forward and backward."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import torch

from benchmarks.erasing.networks import LARGE, NETWORKS
from niwaki.errors import NiwakiError
from niwaki.testing import check_erasing

FORMS = {"program": True, "class": False}


def run(names: Sequence[str], forms: Sequence[str], plans: int) -> bool:
    """Print a row per network and form; whether all of them are exact."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| network | form | structures | erasable | plans | erased | parameters kept | outputs | gradients | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    exact = True
    for name in names:
        for form in forms:
            torch.manual_seed(0)
            model, inputs = (NETWORKS | LARGE)[name].build()
            start = time.process_time()
            try:
                found = check_erasing(model.eval(), inputs, plans=plans, as_graph=FORMS[form], least_erasable=0)
            except (AssertionError, NiwakiError) as cause:
                print(f"| {name} | {form} | {' '.join(str(cause).split())[:300]} |", flush=True)
                exact = False
                continue
            backward = "-" if found.backward is None else f"{found.backward:.0e}"
            print(
                f"| {name} | {form} | {found.listed} | {found.erasable} | {found.plans} | {found.erased:.1f} | "
                f"{found.kept:.0%} | {found.forward:.0e} | {backward} | {time.process_time() - start:.0f} |",
                flush=True,
            )
    return exact
