"""The names of the files of a saved network, and the checksums of their content."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIRECTORY_FORMAT = 1
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
PROGRAM_FILE = "program.json"
CONSTANTS_FILE = "program.safetensors"

# By the key of plan.json that describes each; only the weights are in every saved network.
FILES: Mapping[str, str] = {
    "weights": WEIGHTS_FILE,
    "optimizer": OPTIMIZER_FILE,
    "program": PROGRAM_FILE,
    "constants": CONSTANTS_FILE,
}

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(value: object) -> bool:
    """Whether a value from a file is 64 hexadecimal digits, so that it may become a part of a file name."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def staged_name(file: str, digest: str) -> str:
    """The name of a new file until ``plan.json`` refers to it: ``.model-0123456789abcdef.safetensors``."""
    stem, _, suffix = file.partition(".")
    return f".{stem}-{digest[:16]}.{suffix}"


def checksum(data: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON object without its own ``checksum``, compact and with sorted keys."""
    rest = {key: value for key, value in data.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def crc32(tensor: Tensor) -> int:
    """The CRC-32 of the values of a tensor on the CPU, in row-major order."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
