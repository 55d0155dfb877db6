"""Train the bundled model `tiny` on generated text, on a CPU: `python scripts/train_tiny.py [KEY=VALUE ...]`.

Resumes from `out_dir`/checkpoint.pt if it is there (weights, optimisers, step: the same losses as an unbroken run);
`max_minutes=5` stops early with a checkpoint. The recipe and its keys are configs/train_tiny.yaml;
`recipe=train_tiny_chain` takes another file of configs/, by which a model goes on from `tiny`.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.command import run
from scripts.train.config import composed


def main(words: list[str]) -> None:
    """Two single-threaded workers beat two threads on a shared machine; this process is worker 0."""
    names = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    cfg = composed([word for word in words if not word.startswith("recipe=")], (names or ["train_tiny"])[-1])
    import torch.multiprocessing as mp

    from scripts.train.tiny_loop import worker

    with tempfile.TemporaryDirectory() as meeting:
        others = mp.spawn(worker, (cfg, meeting, 1), nprocs=cfg.workers - 1, join=False) if cfg.workers > 1 else None
        try:
            worker(-1, cfg, meeting, 1)
            while others is not None and not others.join():
                pass
        except BaseException:  # the others would wait for this one
            for process in others.processes if others is not None else ():
                process.terminate()
            raise


if __name__ == "__main__":
    run(main, __doc__)
