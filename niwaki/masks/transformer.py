"""The controller that the authors of ATP went to: a small transformer over the groups (arXiv 2412.14426)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from niwaki.masks.heads import GroupHeads
from niwaki.masks.protocol import MaskGenerator, orthogonal_rows
from niwaki.masks.registry import generator

WIDTH, LAYERS, HEADS = 64, 2, 4


@generator
@final
class TransformerController(MaskGenerator):
    """As `niwaki.masks.GRUController`, with two layers of attention among the groups in place of the GRU: four heads,
    64 numbers for each group."""

    name, travel = "transformer", 0.6
    inputs: Tensor

    def build(self) -> None:
        """Inputs, layers and heads. No dropout: a mask must not depend on chance."""
        self.register_buffer("inputs", orthogonal_rows(len(self.sizes), WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.heads = GroupHeads(WIDTH, self.sizes)

    def scores(self) -> Tensor:
        """Of all units."""
        found: Tensor = self.heads(self.layers(self.inputs.unsqueeze(0))[0])
        return found

    def observe(self, gradient: Tensor, size: Tensor) -> None:
        """It does not look."""
