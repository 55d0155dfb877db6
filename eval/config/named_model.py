"""A model by what it is: `model=ORG/NAME` of the hub, `model=DIR` on the disk, in place of two words each."""

from __future__ import annotations

import re
from pathlib import Path

from eval.config.words import Words

HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
PLACE = ("/", "./", "../", "~")


def with_model(words: Words, config_dir: Path) -> Words:
    """The words, with `model=path` or `model=hub` where a folder or an id was named. Whatever is neither stays, and is
    refused as an unknown name."""
    name = words.get("model")
    if not name or (config_dir / "model" / f"{name}.yaml").is_file():
        return words
    bare = name.strip("'\"")
    if bare.startswith(PLACE) or Path(bare).expanduser().exists():
        return words.with_("model", "path").with_("model.path", name)
    return words.with_("model", "hub").with_("model.id", name) if HUB.fullmatch(bare) else words
