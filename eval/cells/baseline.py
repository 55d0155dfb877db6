"""Which cell others are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_baseline(cell: Mapping[str, Any]) -> bool:
    """Whether a cell is the full cache as the model makes it, and not one that is held in few bits."""
    return cell.get("method") == "full" and not cell.get("kv_bits")
