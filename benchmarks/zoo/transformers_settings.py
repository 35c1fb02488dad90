"""What single architectures of transformers want said beyond the general tables: settings, and inputs."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {}
INPUTS: dict[str, dict[str, Any]] = {}
