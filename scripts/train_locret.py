"""Train retaining heads for a model: `python scripts/train_locret.py [KEY=VALUE ...]`.

The keys are those of configs/train_locret.yaml.
Under `accelerate launch` every process takes a prompt of its own, and their gradients are averaged.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.command import run
from scripts.train.config import composed


def main(words: list[str]) -> None:
    """Compose the config, load the model, train."""
    cfg = composed(words, "train_locret")
    from hydra.utils import instantiate

    from eval.config.build import build
    from eval.config.targets import find_target

    find_target(cfg.train, "train")
    device = cfg.device
    if device == "auto" and "LOCAL_RANK" in os.environ:
        import torch

        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    instantiate(cfg.train)(build(cfg.model, "model", dtype=cfg.dtype, device=device))


if __name__ == "__main__":
    run(main, __doc__)
