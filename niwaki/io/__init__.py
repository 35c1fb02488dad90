"""Files: a cut network, its optimizer, its program; a run in progress. No pickle anywhere.

**A saved network**, directory format 1, is a directory of

* ``model.safetensors``: every entry of the small network's ``state_dict``, tied ones once, and the buffers that are not
in its ``state_dict``;
* ``plan.json``: the plan (`Plan.from_json` reads this very file), and beside its keys

  - ``directory``: the format, 1 (or missing);
  - ``weights``: ``{"sha256": of model.safetensors, "tensors": {name: crc32 of its values}, "tied": {name: name it
    shares}, "buffers": [names of those kept out of the state_dict]}``, where ``buffers`` may be missing;
  - ``optimizer``, ``program``, ``constants``: the same of the files below, if they are there;
  - ``checksum``: the SHA-256 of everything else in the file, as compact JSON with sorted keys;

* ``optimizer.safetensors``, if an optimizer was saved: the tensors of its state. In ``plan.json`` ``optimizer`` has
  ``kind`` (its class), ``shapes`` (of its parameters, by name) and ``tree``: its ``state_dict`` with the names of
  parameters for their numbers, in which ``{"tensor": name}`` is a tensor of the file, ``{"dict": [[key, value], ...]}``
  a dictionary, ``{"tuple": [...]}`` a tuple and ``{"float": "inf"}`` a number that JSON lacks;
* ``program.json`` and ``program.safetensors``, if a program was saved: the graph as `torch.export` writes it, and the
  tensors in it that are not in ``model.safetensors``. (A ``.pt2`` archive of `torch.export.save` holds the same JSON,
  but pickles the example inputs and unpickles whatever is found in their place. ``program.json`` is read against a list
  of what programs are made of; still it is a program: run those of people you trust.)

The plan has ``format`` (3; 1 and 2 had a key for each kind of edit), ``structure`` (a hash of the dense network's names
and shapes), ``groups`` (kept units), ``edits`` (what the cut does, each with its kind under ``edit``; docs/files.md has
a table), ``shapes`` and ``provenance`` (method or criterion, budget, seed, versions, costs).

``plan.json`` is the commit of a save: it is replaced in one step, after all other files are on the disk under staged
names made of their SHA-256 (``.model-0123456789abcdef.safetensors``), which take the place of the old files afterwards.
Wherever a save is killed, a reader finds what was there before, or all that is new.

**A run in progress** is a directory of the last few checkpoints; `niwaki.io.checkpoints` documents them.

Imports core, trace, program and surgery.
"""

from niwaki.io.checkpoints import Checkpoints
from niwaki.io.format import PLAN_FILE, WEIGHTS_FILE
from niwaki.io.network import load, save
from niwaki.io.optimizer import load_optimizer
from niwaki.io.program import load_program
from niwaki.io.reading import read_plan

__all__ = ["PLAN_FILE", "WEIGHTS_FILE", "Checkpoints", "load", "load_optimizer", "load_program", "read_plan", "save"]
