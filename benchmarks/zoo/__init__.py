"""The law over the whole of torchvision, timm and transformers, one process per model."""
