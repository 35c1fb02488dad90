"""Graph networks of PyTorch Geometric, and detectors of Ultralytics, with random weights.

As `of_libraries`, on request: ``pip install --no-deps torch-geometric ultralytics`` and what their imports ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.entries import Entry, generator, image

_NODES, _EDGES, _WIDTH, _HIDDEN = 12, 40, 8, 16
_CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "GCNConv": {},
    "SAGEConv": {},
    "GraphConv": {},
    "TAGConv": {"K": 2},
    "SGConv": {"K": 2},
    "SSGConv": {"alpha": 0.1, "K": 2},
    "ChebConv": {"K": 3},
    "LEConv": {},
    "ClusterGCNConv": {},
    "ARMAConv": {"num_stacks": 2, "num_layers": 2},
    "GATConv": {"heads": 2, "concat": False},
    "GATv2Conv": {"heads": 2, "concat": False},
    "TransformerConv": {"heads": 4, "concat": True},
    "ResGatedGraphConv": {},
    "FiLMConv": {},
    "GENConv": {},
    "GeneralConv": {},
    "FeaStConv": {"heads": 2},
    "MFConv": {"max_degree": 4},
    "EGConv": {"num_heads": 4},
}
_MODELS: dict[str, dict[str, Any]] = {"GCN": {}, "GraphSAGE": {}, "GIN": {}, "GAT": {"heads": 2}, "EdgeCNN": {}}
_DETECTORS = (
    "yolov3-tiny yolov5n yolov6n yolov8n yolov8n-seg yolov8n-pose yolov8n-obb yolov9t yolov10n yolo11n yolo12n".split()
)


def entries() -> list[Entry]:
    """One entry per network."""
    layers = [
        Entry("libraries", f"torch_geometric: {name}", "torch_geometric", partial(_layers, name, options))
        for name, options in _CONVOLUTIONS.items()
    ]
    models = [
        Entry("libraries", f"torch_geometric: {name}", "torch_geometric", partial(_model, name, options))
        for name, options in _MODELS.items()
    ]
    detectors = [
        Entry("libraries", f"ultralytics: {name}", "ultralytics", partial(_detector, name)) for name in _DETECTORS
    ]
    return [*layers, *models, *detectors]


class _Layers(nn.Module):
    """Two graph convolutions, and classes of nodes."""

    def __init__(self, convolution: Callable[..., nn.Module], options: dict[str, Any]) -> None:
        super().__init__()
        width = _HIDDEN // options["heads"] if options.get("concat") else _HIDDEN
        self.first = convolution(_WIDTH, width, **options)
        self.second = convolution(_HIDDEN, width, **options)
        self.head = nn.Linear(_HIDDEN, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x, edges)), edges))
        classes: Tensor = self.head(x)
        return classes


def _graph() -> tuple[Tensor, Tensor]:
    return image(_NODES, _WIDTH), torch.randint(0, _NODES, (2, _EDGES), generator=generator())


def _layers(name: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    return _Layers(getattr(import_module("torch_geometric.nn"), name), options), _graph()


def _model(name: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    made = getattr(import_module("torch_geometric.nn.models"), name)(_WIDTH, _HIDDEN, 2, 3, **options)
    return made, _graph()


def _detector(name: str) -> tuple[nn.Module, Any]:
    tasks = import_module("ultralytics.nn.tasks")
    kinds = {"seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel"}
    model = getattr(tasks, kinds.get(name.rpartition("-")[2], "DetectionModel"))
    return model(f"{name}.yaml", nc=4, verbose=False), image(2, 3, 64, 64)
