"""DISP-LLM's setting (arXiv 2410.11988): each half of a Llama layer has its own channels to read and to write.

The masks are learnt on text while the weights stay as they are. The residual stream carries all channels; the cut
network gathers those that a half reads, and scatters those that it writes. Without a folder the Llama is a small one
trained here, on sequences that count up; with one, it is that of `python examples/disp_llm.py --weights stories260K
--text tinystories_tok512.npz` (a folder of transformers, and an archive of its tokens, `train` and `val`).
"""

import argparse

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import niwaki
from niwaki.unions import UnionSpace

parser = argparse.ArgumentParser()
parser.add_argument("--weights")
parser.add_argument("--text")
parser.add_argument("--params", type=float, default=0.65)
parser.add_argument("--steps", type=int, default=100)
given = parser.parse_args()
torch.manual_seed(0)


def loss_fn(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Nats per token."""
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


if given.weights:
    model = LlamaForCausalLM.from_pretrained(given.weights)
    text = np.load(given.text)
    batches, test = (torch.from_numpy(text[name][: 128 * 400].astype(np.int64)).view(-1, 8, 128) for name in text)
else:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, tie_word_embeddings=True, **sizes))
    batches = (torch.randint(32, (60, 16, 1)) + torch.randint(1, 4, (60, 16, 1)) * torch.arange(24)) % 32
    batches, test = batches[:50], batches[50:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in batches:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
model.eval()
example = {"input_ids": test[0][:1], "use_cache": False}
space = niwaki.search_space(model, example, erase=True)
with torch.no_grad():
    print(f"dense: {sum(loss_fn(model, batch) for batch in test) / len(test):.3f} nats per token")
streams = {"shared": space, "union": UnionSpace.of(space), "read, too": UnionSpace.of(space, readers=True)}
weights = {name: value.clone() for name, value in model.state_dict().items()}
for name, one in streams.items():
    model.load_state_dict(weights)
    masks = niwaki.DDPMasks(batches, loss_fn, steps=given.steps)
    plan = niwaki.choose(one, masks, niwaki.Budget(params=given.params))
    small = niwaki.cut(masks.fold_(), plan)
    with torch.no_grad():
        loss = sum(loss_fn(small, batch) for batch in test) / len(test)
    print(f"{name}: {loss:.3f} nats, {one.cost(plan).params:,} parameters. {niwaki.check(model, plan, example)}")
