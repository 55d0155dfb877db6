"""Configs of the training scripts, with the words of the command line over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2o.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def composed(words: Sequence[str], name: str) -> Any:
    """configs/<`name`>.yaml with `words` over it, as Hydra reads them. Raises InputError for a word that does not fit.

    In the files `${repo:models/x}` is a place in the repository, wherever the command is run from.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("repo", lambda place: str(ROOT / place), replace=True)
    with initialize_config_dir(config_dir=str(ROOT / "configs"), version_base="1.3"):
        try:
            return compose(name, list(words))
        except (HydraException, OmegaConfBaseException) as error:
            what = str(error).strip().split("\n")[0]
            hint = f"keys are those of configs/{name}.yaml, written key=value"
            raise InputError(f"cannot use {' '.join(words)!r}: {what}", hint) from error
