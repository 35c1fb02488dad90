"""Small mixtures of experts, written as people write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.networks.torchvision_cpu import load

WIDTH, INNER, EXPERTS = 6, 5, 4


class Expert(nn.Module):
    """Two layers."""

    def __init__(self, inner: int = INNER) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[N, WIDTH] for [N, WIDTH]."""
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


class Listed(nn.Module):
    """A list of modules. ``order``: softmax first or top-k first, and what is done to the weights of the chosen."""

    def __init__(self, order: str = "softmax, top-k", k: int = 2, experts: int = EXPERTS) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, experts)
        self.experts = nn.ModuleList(Expert() for _ in range(experts))
        self.order, self.k = order, k

    def choice(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers [N, k] of the chosen."""
        if self.order == "softmax, top-k":
            weight, chosen = logits.softmax(-1).topk(self.k)
            return weight, chosen
        if self.order == "normalised":
            weight, chosen = logits.softmax(-1).topk(self.k)
            return weight / weight.sum(-1, keepdim=True), chosen
        if self.order == "sigmoid":
            weight, chosen = logits.sigmoid().topk(self.k)
            return weight, chosen
        weight, chosen = logits.topk(self.k)
        return weight.softmax(-1), chosen

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        """What the chosen experts make of ``x``."""
        weight, chosen = self.choice(logits)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            if len(row):
                out.index_add_(0, row, expert(x[row]) * weight[row, place, None])
        return out

    def forward(self, x: Tensor) -> Any:
        """[N, WIDTH] for [N, WIDTH]."""
        return self.mixed(x, self.gate(x))


class Balanced(Listed):
    """A loss beside the result, which follows from all probabilities and their number."""

    def forward(self, x: Tensor) -> Any:
        """The result and the loss."""
        logits = self.gate(x)
        return self.mixed(x, logits), logits.softmax(-1).mean(0).square().sum() * logits.shape[-1]


class Shown(Listed):
    """Its logits are returned, too."""

    def forward(self, x: Tensor) -> Any:
        """The result and the logits."""
        logits = self.gate(x)
        return self.mixed(x, logits), logits


class Ranked(Listed):
    """Its logits have a part in the result that no softmax is in front of."""

    def forward(self, x: Tensor) -> Any:
        """[N, WIDTH] for [N, WIDTH]."""
        logits = self.gate(x)
        return self.mixed(x, logits) + logits.tanh().mean(-1, keepdim=True)


class Literal(Listed):
    """The number of experts is written in the code."""

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        """What the chosen experts make of ``x``."""
        return super().mixed(x, logits.view(-1, EXPERTS))


class Grouped(Listed):
    """The better half of the experts is chosen first, then among these."""

    def choice(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers [N, k] of the chosen."""
        halves = logits.view(len(logits), 2, -1)
        best = halves.amax(-1).argmax(-1)
        mask = torch.full_like(halves, float("-inf"))
        mask[torch.arange(len(best)), best] = 0
        weight, chosen = (halves + mask).flatten(1).topk(1)
        return weight.softmax(-1), chosen


class Corrected(Listed):
    """A correction decides about the choice, and not about the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Buffer(torch.zeros(EXPERTS))

    def choice(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers [N, k] of the chosen."""
        scores = logits.sigmoid()
        chosen = (scores + self.correction).topk(self.k).indices
        return scores.gather(1, chosen), chosen


class Stacked(nn.Module):
    """All experts in one tensor, with biases; a router without one; the number of experts in two attributes."""

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(WIDTH, EXPERTS))
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, INNER))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
        self.num, self.sizes, self.k = EXPERTS, {"experts": EXPERTS}, k

    def forward(self, x: Tensor) -> Tensor:
        """[N, WIDTH] for [N, WIDTH]."""
        weight, chosen = (x @ self.router).softmax(-1).topk(self.k)
        mask = nn.functional.one_hot(chosen, self.num)  # [N, k, E]
        assert self.sizes["experts"] == len(self.up)
        out = torch.zeros_like(x)
        for number in range(self.num):
            row, place = torch.where(mask[..., number] > 0)
            h = torch.relu(x[row] @ self.up[number].T + self.up_bias[number])
            out.index_add_(0, row, (h @ self.down[number].T) * weight[row, place, None])
        return out


class Around(nn.Module):
    """A network with one or two of these in residual branches."""

    def __init__(self, *mixtures: nn.Module) -> None:
        super().__init__()
        self.start, self.layers, self.head = nn.Linear(3, WIDTH), nn.ModuleList(mixtures), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Any:
        """[N, 2] for [N, 3], and what the mixtures return besides."""
        x, more = self.start(x), []
        for layer in self.layers:
            made = layer(torch.tanh(x))
            made, *other = made if isinstance(made, tuple) else (made,)
            x, more = x + made, [*more, *other]
        return (self.head(x), *more) if more else self.head(x)


_SIZES: Mapping[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "use_cache": False,
}
_INNER = {"moe_intermediate_size": 12}
_LATENT = {
    "num_key_value_heads": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 4,
    "q_lora_rank": 5,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "shared_expert_intermediate_size": 7, **_INNER},
    "Qwen3Moe": {"num_experts": 4, "head_dim": 8, **_INNER},
    "Olmoe": {"num_experts": 4},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
    "DeepseekV3": {**_LATENT, **_INNER, "n_group": 2, "topk_group": 1},
}


def decoder(family: str, **more: Any) -> nn.Module:
    """A causal language model of transformers, of two layers."""
    load()
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **FAMILIES[family], **more})
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()  # type: ignore[no-any-return]


def tokens() -> dict[str, Tensor]:
    """Two rows of seven."""
    return {"input_ids": torch.arange(2, 16).view(2, 7) % 13}
