"""Draw how `tiny` learnt: `python scripts/train/tiny_curve.py models/tiny` reads train.csv and eval.csv there."""

import csv
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from scripts.command import read, run

SHOWN = ("single", "multikey8", "twohop", "fewshot", "code", "dialogue", "passage", "count")


def table(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows of a CSV file by its header."""
    with path.open() as f:
        return list(csv.DictReader(f))


def main(words: list[str]) -> None:
    """Draw train.csv and eval.csv of the folder into its curve.png."""
    where = pathlib.Path(read(words, {"folder": None}, places=("folder",)).folder)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    train, checks = table(where / "train.csv"), table(where / "eval.csv")
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    tokens, loss = ([float(row[key]) for row in train] for key in ("tokens", "loss"))
    tokens = [t / 1e6 for t in tokens]
    smooth = [sum(loss[max(0, i - 9) : i + 1]) / len(loss[max(0, i - 9) : i + 1]) for i in range(len(loss))]
    left.plot(tokens, loss, lw=0.4, color="0.7")
    left.plot(tokens, smooth, lw=1.2, color="C0")
    left.set(xlabel="million tokens", ylabel="loss on learnt tokens (lengths grow)", ylim=(0, None))
    for name in SHOWN:
        # the longest length that was looked at, at every look
        best: dict[float, tuple[int, float]] = {}
        for row in checks:
            task, length = row["cell"].split("@")
            at = float(row["tokens"]) / 1e6
            if task == name and int(length) >= best.get(at, (0, 0.0))[0]:
                best[at] = (int(length), 100 * float(row["accuracy"]))
        right.plot(list(best), [v for _, v in best.values()], marker=".", label=name)
    right.set(xlabel="million tokens", ylabel="right answers, %", ylim=(-2, 102))
    right.legend(fontsize=7, ncol=2)
    fig.tight_layout()
    fig.savefig(where / "curve.png", dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    run(main, __doc__)
