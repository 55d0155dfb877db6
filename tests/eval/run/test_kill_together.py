"""A grouped sweep that is killed again and again: no row of any of its cells is lost, doubled or changed."""

import json
import os
import random
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

from plain_cells import rows as whole_rows
from tqdm import tqdm

import run_pred
from eval.config.compose import compose_cell, configs
from eval.run import together
from eval.tasks.mini.task import Mini

ROWS, KILLS = 25, 12
WORDS = ["task=mini_single", "task.length=256", f"limit={ROWS}", "batch_size=2"]
CELLS = ("method=full", "method=h2o budget=.1", "method=h2o budget=.2", "method=d2o budget=.2", "method=tova budget=.2")
FIELDS = {key: value for key, value in whole_rows()[0].items() if key not in ("id", "prompt_hash")}


class NoLab(SimpleNamespace):
    """Stands for a model under a cell's method: only what is written and when matters here."""

    loaded, readers = SimpleNamespace(weights=None), 5


def quick(monkeypatch):
    """Everything but the model."""

    def measure(self, samples, lab):
        for sample in samples:
            asked = {key: getattr(sample, key) for key in ("answers", "all_classes", "length")}
            yield FIELDS | asked | {"pred": f"{sample.id} {lab.cell} " + "é" * 999}

    monkeypatch.setattr(Mini, "begin", lambda self, samples, lab: None)
    monkeypatch.setattr(Mini, "in_batches", super(Mini.__mro__[1], Mini).in_batches)
    monkeypatch.setattr(Mini, "measure", measure)
    monkeypatch.setattr(together, "open_lab", lambda planned, shared: NoLab(cell=str(planned.path.parent.name)))
    monkeypatch.setattr(together, "share_labs", lambda labs, most: SimpleNamespace(in_turn=iter))


def composed(*places):
    with configs(run_pred.CONFIGS):
        made = [compose_cell([*WORDS, *cell.split()], run_pred.CONFIGS) for cell in CELLS]
    for place in places:
        cells = [replace(cell, cfg=cell.cfg.copy()) for cell in made]
        for cell in cells:
            cell.cfg.results_dir = str(place)
        yield cells


def kept(place):
    return {file.parent.parent.name: file.read_bytes() for file in place.rglob("predictions.jsonl")}


def killed(cells, rows, share):
    """Run the cells in a process that is killed when it has written `rows` rows and a `share` of the next."""
    pid = os.fork()
    if not pid:
        tqdm.set_lock(threading.RLock())  # its own is shared with every fork, and one that is killed may hold it
        write, count = os.write, iter(range(rows))

        def part(fd, data):
            if next(count, None) is None:
                write(fd, data[: int(len(data) * share)])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(fd, data)

        os.write = part
        try:
            together.run_together(cells)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_kills_lose_double_and_change_no_row_of_any_cell(tmp_path, monkeypatch, capfd):
    quick(monkeypatch)
    undisturbed, place = tmp_path / "a", tmp_path / "b"
    first, cells = composed(undisturbed, place)
    done, codes = together.run_together(first)
    draw, before = random.Random(16), {}
    assert len(done) == len(CELLS) and not codes
    for _ in range(KILLS):
        killed(cells, draw.randint(0, 9), draw.choice((0, 0.3, 0.6, 1)))
        now = kept(place)
        assert all(now[cell].startswith(rows[: rows.rfind(b"\n") + 1]) for cell, rows in before.items())
        before = now
    assert 0 < min(rows.count(b"\n") for rows in before.values()) < ROWS, "no kill came in the middle"
    done, codes = together.run_together(cells)
    assert len(done) == len(CELLS) and not codes, capfd.readouterr().err
    assert {cell: sorted(rows.splitlines()) for cell, rows in kept(place).items()} == {
        cell: sorted(rows.splitlines()) for cell, rows in kept(undisturbed).items()
    }
    assert all(json.loads(file.read_text())["state"] == "done" for file in place.rglob("status.json"))
