"""Sizes in attributes of ``torch.nn`` modules that are used for printing and checks only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class RememberedSize:
    """Attribute ``name`` is the length of dimension ``dim`` of ``tensor``, times the attribute ``times``."""

    name: str
    tensor: str
    dim: int
    times: str | None = None


_CONVOLUTION = (RememberedSize("out_channels", "weight", 0), RememberedSize("in_channels", "weight", 1, times="groups"))
_TRANSPOSED = (RememberedSize("in_channels", "weight", 0), RememberedSize("out_channels", "weight", 1, times="groups"))
_NORM = (RememberedSize("num_features", "weight", 0), RememberedSize("num_features", "running_mean", 0))

SIZES: Mapping[type[nn.Module], tuple[RememberedSize, ...]] = {
    nn.Linear: (RememberedSize("out_features", "weight", 0), RememberedSize("in_features", "weight", 1)),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.modules.batchnorm._NormBase: _NORM,
    nn.Embedding: (RememberedSize("embedding_dim", "weight", 1), RememberedSize("num_embeddings", "weight", 0)),
    nn.MultiheadAttention: (
        *(RememberedSize(name, "in_proj_weight", 1) for name in ("embed_dim", "kdim", "vdim")),
        RememberedSize("embed_dim", "q_proj_weight", 1),
        RememberedSize("kdim", "k_proj_weight", 1),
        RememberedSize("vdim", "v_proj_weight", 1),
    ),
    nn.RNNBase: (
        RememberedSize("input_size", "weight_ih_l0", 1),
        RememberedSize("hidden_size", "weight_hr_l0", 1),  # with a projection, whose result the recurrent weight reads
        RememberedSize("hidden_size", "weight_hh_l0", 1),
        RememberedSize("proj_size", "weight_hr_l0", 0),
    ),
    nn.RNNCellBase: (RememberedSize("input_size", "weight_ih", 1), RememberedSize("hidden_size", "weight_hh", 1)),
    nn.PReLU: (RememberedSize("num_parameters", "weight", 0),),
}

# Attributes that may be None, which stands for the machine epsilon of the dtype.
EPSILONS: Mapping[type[nn.Module], str] = {nn.RMSNorm: "eps"}
