"""Train retaining heads for a model: `python scripts/train_locret.py`, configs/train_locret.yaml.

Under `accelerate launch` every process takes a prompt of its own, and their gradients are averaged.
"""

import os
import pathlib
import sys

import hydra
from omegaconf import OmegaConf

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OmegaConf.register_new_resolver("repo", lambda place: str(ROOT / place), replace=True)  # configs/model/tiny.yaml


@hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name="train_locret")
def main(cfg) -> None:
    from hydra.utils import instantiate

    from d2o.errors import InputError

    device = cfg.device
    if device == "auto" and "LOCAL_RANK" in os.environ:
        import torch

        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    try:
        instantiate(cfg.train)(instantiate(cfg.model, dtype=cfg.dtype, device=device))
    except InputError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
