"""BERT in the Trainer of Hugging Face: fine-tune, prune meanwhile, and save a checkpoint that needs no niwaki.

python examples/bert_trainer.py [STEPS]   # a tiny BERT on drawn sentences; for yours: from_pretrained and your data
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, Trainer, TrainingArguments

import niwaki
from niwaki.huggingface import can_save, save_pretrained

torch.manual_seed(0)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
config = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
)
model = AutoModelForSequenceClassification.from_config(config)  # yours: .from_pretrained(...)
texts = torch.randint(8, 64, (256, 16))
labels = torch.arange(256) % 2
texts[:, 3] = 2 + labels  # what there is to learn
data = [{"input_ids": text, "labels": label} for text, label in zip(texts, labels, strict=True)]

# A config.json has one width for all layers, and BERT's cannot express fewer heads of the same size.
inputs = {"input_ids": texts[:2]}
space = niwaki.search_space(model, inputs, layout="uniform")
space = niwaki.search_space(model, inputs, layout="uniform", ignored=can_save(space).ignored)
assert can_save(space)

schedule = niwaki.Schedule(start=steps // 10, until=steps // 2, periods=5)
arguments = TrainingArguments(
    "out/bert_trainer",
    max_steps=steps,
    per_device_train_batch_size=16,
    learning_rate=3e-3,
    eval_strategy="steps",
    eval_steps=max(steps // 5, 1),
    eval_delay=schedule.until,  # before it, the best checkpoint is from before pruning
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:64])
method = niwaki.HESSO(space, trainer.create_optimizer(), niwaki.Budget(params=0.85), schedule)
trainer.train()

print(method)
small = niwaki.cut(model, method.plan()).eval()
save_pretrained(small, "out/bert", inputs)
again = AutoModelForSequenceClassification.from_pretrained("out/bert")  # transformers alone
print("feed-forward width", again.config.intermediate_size, "instead of", config.intermediate_size)
assert torch.allclose(again(**inputs).logits, small(**inputs).logits, atol=1e-5)
