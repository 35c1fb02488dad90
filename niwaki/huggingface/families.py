"""The numbers of configurations that give the sizes of tensors, family by family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Size:
    """A number of the configuration: dimension ``dim`` of the tensors whose names match, divided by the head size if it
    counts heads. A group in the pattern is the number of the layer."""

    name: str
    tensor: str
    dim: int
    heads: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """The numbers in the configuration of a family. ``head``: its name for the head size, and the attention modules'
    name. ``epsilon``: its name for the epsilon of all norms. ``scaled``: norms that read one projection alone, by its
    name: they may have another epsilon, since the projection can be scaled instead. ``multiples``: pairs of names, of
    which the first must be a multiple of the second if the configuration checks that (not all of a family do)."""

    sizes: tuple[Size, ...]
    head: tuple[str, str] | None = None
    epsilon: str | None = None
    scaled: Mapping[str, str] = field(default_factory=dict)
    multiples: tuple[tuple[str, str], ...] = ()


_LAYER = r".*\blayers\.(\d+)\..*"
_DECODER = Family(
    sizes=(
        Size("hidden_size", r".*embed_tokens\.weight", 1),
        Size("intermediate_size", _LAYER + r"\bmlp\.gate_proj\.weight", 0),
        Size("num_attention_heads", _LAYER + r"\bq_proj\.weight", 0, heads=True),
        Size("num_key_value_heads", _LAYER + r"\bk_proj\.weight", 0, heads=True),
    ),
    head=("head_dim", "head_dim"),
    epsilon="rms_norm_eps",
    scaled={"q_norm": "q_proj", "k_norm": "k_proj"},
    multiples=(("hidden_size", "num_attention_heads"),),
)
_MIXTURE = (  # of experts; the stacked weights are [experts, rows, columns]
    Size("hidden_size", r".*embed_tokens\.weight", 1),
    Size("num_attention_heads", _LAYER + r"\bq_proj\.weight", 0, heads=True),
    Size("num_key_value_heads", _LAYER + r"\bk_proj\.weight", 0, heads=True),
)
_INNER = _LAYER + r"\bmlp\.experts\.down_proj"
_ROUTER = _LAYER + r"\bmlp\.gate\.weight"
_QWEN_MIXTURE = Family(
    sizes=(
        *_MIXTURE,
        Size("intermediate_size", _LAYER + r"\bmlp\.gate_proj\.weight", 0),
        Size("moe_intermediate_size", _INNER, 2),
        Size("shared_expert_intermediate_size", _LAYER + r"\bshared_expert\.gate_proj\.weight", 0),
        Size("num_experts", _ROUTER, 0),
    ),
    head=("head_dim", "head_dim"),
    epsilon="rms_norm_eps",
    scaled={"q_norm": "q_proj", "k_norm": "k_proj"},
    multiples=(("hidden_size", "num_attention_heads"),),
)


def _mixture(experts: str) -> Family:
    """One whose experts have the width of layers, and their number the name ``experts``."""
    return Family(
        sizes=(*_MIXTURE, Size("intermediate_size", _INNER, 2), Size(experts, _ROUTER, 0)),
        head=("head_dim", "head_dim"),
        epsilon="rms_norm_eps",
        scaled={"q_norm": "q_proj", "k_norm": "k_proj"},
        multiples=(("hidden_size", "num_attention_heads"),),
    )


_T5 = Family(
    sizes=(
        Size("d_model", r"shared\.weight", 1),
        Size("d_ff", r".*\bDenseReluDense\.wi(?:_0)?\.weight", 0),
        Size("num_heads", r".*\b(?:SelfAttention|EncDecAttention)\.q\.weight", 0, heads=True),
    ),
    head=("d_kv", "key_value_proj_dim"),
    epsilon="layer_norm_epsilon",
)
_VIT = Family(
    sizes=(
        Size("intermediate_size", _LAYER + r"\bmlp\.fc1\.weight", 0),
        Size("num_attention_heads", _LAYER + r"\bq_proj\.weight", 0, heads=True),
    ),
    head=("head_dim", "head_dim"),
)

# By `config.model_type`. A new family is one entry; missing numbers show as errors when a model is built from its
# config.
FAMILIES: dict[str, Family] = {
    "bert": Family((Size("intermediate_size", r".*\blayer\.(\d+)\.intermediate\.dense\.weight", 0),)),
    "gpt2": Family((Size("n_inner", r".*\bh\.(\d+)\.mlp\.c_fc\.weight", 1),)),
    "llama": _DECODER,
    "mistral": _DECODER,
    "mixtral": _mixture("num_local_experts"),
    "olmoe": _mixture("num_experts"),
    "qwen2": _DECODER,
    "qwen2_moe": _QWEN_MIXTURE,
    "qwen3": _DECODER,
    "qwen3_moe": _QWEN_MIXTURE,
    "mt5": _T5,
    "t5": _T5,
    "vit": _VIT,
}
