"""A Llama made smaller without training, as an ordinary checkpoint: fewer heads, a narrower feed-forward.

python examples/llama_checkpoint.py   # a tiny one, drawn; for yours: from_pretrained and a few hundred texts
"""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import niwaki
from niwaki.huggingface import can_save, save_pretrained

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = AutoModelForCausalLM.from_config(config).eval()  # yours: .from_pretrained(...)
batches = [{"input_ids": rows, "labels": rows} for rows in torch.randint(0, 64, (4, 8, 16))]
inputs = {"input_ids": batches[0]["input_ids"][:1]}

space = niwaki.search_space(model, inputs, layout="uniform")  # a config.json has one width for all layers
print(can_save(space))


def loss_fn(network: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return network(**batch).loss


plan = niwaki.choose(space, niwaki.score(space, "taylor1", batches, loss_fn), niwaki.Budget(params=0.8))
repaired = niwaki.compensate(space, plan, [{"input_ids": batch["input_ids"]} for batch in batches])
small = niwaki.cut(repaired.model, plan)
for name, network in (("dense", model), ("cut", niwaki.cut(model, plan)), ("repaired", small)):
    with torch.no_grad():
        loss = sum(float(loss_fn(network, batch)) for batch in batches) / len(batches)
    print(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters, {loss:.3f} nats per token")

save_pretrained(small, "out/llama", inputs)
again = AutoModelForCausalLM.from_pretrained("out/llama")  # transformers alone: generate, fine-tune, convert
print(again.config.hidden_size, "wide,", again.config.intermediate_size, "feed-forward")
assert torch.allclose(again(**inputs).logits, small(**inputs).logits, atol=1e-5)
