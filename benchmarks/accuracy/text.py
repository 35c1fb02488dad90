"""The tasks on text."""

from __future__ import annotations

from functools import partial

from torch import nn

from benchmarks.accuracy.language import LanguageTask, characters, tokens
from benchmarks.accuracy.networks import llama, pretrained
from benchmarks.accuracy.recipe import Adam, Recipe
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.where import Where

SMOKE_STEPS = 50


def shakespeare(where: Where, seed: int) -> Task:
    """Recipe D: a decoder of four layers on the characters of Shakespeare."""
    texts = characters(where.path("text/tinyshakespeare.txt"))
    settings = {
        "vocab_size": texts.vocabulary,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 128,
    }
    recipe = Recipe(SMOKE_STEPS if where.smoke else 3000, 32, 1e-3, 0.01, Adam())
    about = "llama of 4 layers, width 128, 4 heads"
    build = partial(llama, **settings)
    return LanguageTask("shakespeare", recipe, texts, build, where.device, 128, 512, fresh, about)


def stories(where: Where, seed: int) -> Task:
    """Recipe D: the 260,032-parameter Llama of TinyStories, trained on; a narrow one begins from scratch."""
    build = partial(pretrained, where.path("weights/stories260K"))
    texts = tokens(where.path("text/tinystories_tok512.npz"))
    recipe = Recipe(SMOKE_STEPS if where.smoke else 300, 16, 3e-4, 0.01, Adam())
    return LanguageTask("stories", recipe, texts, build, where.device, 256, 128, fresh, "stories260K, pretrained")


def fresh(model: nn.Module) -> None:
    """Draw the weights of a Llama as transformers does: matrices with a deviation of 0.02, norms at 1."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.ones_(parameter)
