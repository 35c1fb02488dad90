"""What a cut does, one thing at a time. A plan is a list of edits; whoever carries plans out, compares, writes or
reads them loops over that list and knows no kind of edit by name.

A new kind is one file here, with a class that is decorated with `register_edit`, and one line below.
"""

from niwaki.core.edits.base import (
    Edit,
    GatedEdit,
    ModuleEdit,
    NewParameter,
    Place,
    ReplacingEdit,
    TensorChange,
    TensorEdit,
    edited_by_hand,
    register_edit,
)
from niwaki.core.edits.erase import Erase
from niwaki.core.edits.erase_experts import EraseExperts
from niwaki.core.edits.erase_modules import EraseModules
from niwaki.core.edits.gather import Gather
from niwaki.core.edits.implant import Implant
from niwaki.core.edits.keep import Keep, KeepDirection
from niwaki.core.edits.make_constant import MakeConstant
from niwaki.core.edits.new_bias import NewBias
from niwaki.core.edits.numbers import SetAttribute, SetScalar
from niwaki.core.edits.placed import PlacedEdit
from niwaki.core.edits.rescale import Rescale
from niwaki.core.edits.scaled_before import ScaledBefore
from niwaki.core.edits.scatter import Scatter
from niwaki.core.edits.zeroed import Zeroed

__all__ = [
    "Edit",
    "Erase",
    "EraseExperts",
    "EraseModules",
    "GatedEdit",
    "Gather",
    "Implant",
    "Keep",
    "KeepDirection",
    "MakeConstant",
    "ModuleEdit",
    "NewBias",
    "NewParameter",
    "Place",
    "PlacedEdit",
    "ReplacingEdit",
    "Rescale",
    "ScaledBefore",
    "Scatter",
    "SetAttribute",
    "SetScalar",
    "TensorChange",
    "TensorEdit",
    "Zeroed",
    "edited_by_hand",
    "register_edit",
]
