"""The full cache: nothing is evicted, no budget. The ceiling that every method is compared with."""

from __future__ import annotations

from d2o.layer import KeepAll


class Full(KeepAll):
    """Evicts nothing, takes no budget."""
