"""Real processes on one cell: killed at any moment, interrupted, two at once, on a disk that fills up."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from eval.cells.cell import Cell
from eval.cells.rows import read_rows
from eval.run.loop import fill, lacking
from eval.tasks.sample import Sample
from eval.tasks.task import Task

ROOT = Path(__file__).resolve().parents[3]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


WORKER = """
import sys, time
from pathlib import Path
from eval.cells.cell import Cell
from eval.exits import report
from eval.run.loop import fill, lacking
from eval.tasks.sample import Sample
from eval.tasks.task import Task

CONFIG = {"identity": {}, "protocol_hash": "a", "model_fingerprint": "m", "versions": {}, "device": "cpu"}

class Slow(Task):
    batched = True

    def measure(self, samples, lab):
        time.sleep(0.01)
        for sample in samples:
            yield {"pred": "x" * 3000 + str(int(sample.id) * 7), "budget": 0.2, "prefill_s": time.time()}

def run():
    samples = [Sample(str(i), f"prompt {i}", ["a"], None, i) for i in range(60)]
    with Cell.open(Path(sys.argv[1]), CONFIG, [s.id for s in samples]) as cell:
        fill(cell, lacking(cell, samples), Slow(), None, int(sys.argv[2]), lambda row: None)

try:
    run()
except BaseException as error:
    sys.exit(report(error))
"""


def start(path, batch=1, **more):
    line = [sys.executable, "-c", WORKER, str(path), str(batch)]
    return subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, **more)


def timeless(path):
    return sorted(json.dumps({k: v for k, v in r.items() if not k.endswith("_s")}) for r in read(path))


def wait_for_rows(path, process, least):
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < least):
        time.sleep(0.002)


@pytest.mark.parametrize("batch", [1, 4])
def test_killed_again_and_again_a_run_ends_with_the_rows_of_an_undisturbed_one(tmp_path, batch):
    undisturbed, killed = tmp_path / "a" / "predictions.jsonl", tmp_path / "b" / "predictions.jsonl"
    assert start(undisturbed.parent, batch).wait() == 0
    draw = random.Random(batch)
    for kill in range(6):
        process = start(killed.parent, batch)
        before = killed.read_bytes().count(b"\n") if killed.exists() else 0
        if kill % 3:
            wait_for_rows(killed, process, before + draw.randint(1, 8))
            time.sleep(draw.random() * 0.02)
        else:
            time.sleep(draw.random() * 0.4)  # also while it opens the cell
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < len(read(killed)) < 60
    assert start(killed.parent, batch).wait() == 0
    assert timeless(killed) == timeless(undisturbed)
    assert json.loads((killed.parent / "status.json").read_text())["state"] == "done"
    assert sorted(p.name for p in killed.parent.iterdir()) == ["config.json", "predictions.jsonl", "status.json"]


def forked(cell, rows, torn_at=None):
    """A run of `rows` rows in a process of its own, which has nothing to import; its id. `torn_at`: it is killed with
    half of its row of that number written."""
    pid = os.fork()
    if pid:
        return pid
    try:
        tqdm.set_lock(threading.RLock())  # its own is shared with every fork, and one that is killed may hold it
        samples = [Sample(str(i), f"prompt {i}", ["a"], None, i) for i in range(rows)]
        if torn_at is not None:
            write, count = os.write, iter(range(torn_at))

            def half(fd, data):
                if next(count, None) is None:
                    write(fd, data[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return write(fd, data)

            os.write = half
        with Cell.open(cell, CONFIG, [sample.id for sample in samples]) as opened:
            fill(opened, lacking(opened, samples), Quick(), None, 1, lambda row: None)
        os._exit(0)
    finally:
        os._exit(1)


class Quick(Task):
    batched = True

    def measure(self, samples, lab):
        time.sleep(0.001)
        for sample in samples:
            yield {"pred": f"é {int(sample.id) * 7} " + "x" * 3000, "answers": ["a"], "budget": 0.2}


CONFIG = {"identity": {}, "protocol_hash": "a", "model_fingerprint": "m", "versions": {}, "device": "cpu"}


def test_70_kills_lose_double_and_change_no_row(tmp_path, capfd):
    """50 at any moment, also while the cell is opened, and 20 in the middle of a row. After each, all whole rows of
    before are there as they were, byte for byte."""
    file, draw, rows = tmp_path / "cell" / "predictions.jsonl", random.Random(70), 900
    file.parent.mkdir()
    kills = [None] * 50 + [draw.randint(0, 9) for _ in range(20)]
    draw.shuffle(kills)
    before, torn = b"", 0
    for torn_at in kills:
        pid = forked(file.parent, rows, torn_at)
        if torn_at is None:
            time.sleep(draw.random() * 0.06)
            os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        now = file.read_bytes() if file.exists() else b""
        torn += not now.endswith(b"\n") and bool(now)
        whole = now[: now.rfind(b"\n") + 1]
        assert whole.startswith(before)
        before = whole
    assert torn >= 20 and 20 < len(read_rows(file)[0]) < rows, (torn, before.count(b"\n"))
    assert os.waitpid(forked(file.parent, rows), 0)[1] == 0
    found = read(file)
    wanted = [{"id": str(i), "pred": f"é {i * 7} " + "x" * 3000, "answers": ["a"], "budget": 0.2} for i in range(rows)]
    assert file.read_bytes().startswith(before) and file.read_bytes().endswith(b"\n")
    assert [{key: row[key] for key in wanted[0]} for row in found] == wanted
    capfd.readouterr()


def test_two_runs_on_one_cell_do_not_mix(tmp_path):
    first = start(tmp_path)
    wait_for_rows(tmp_path / "predictions.jsonl", first, 1)
    second = start(tmp_path)
    assert second.wait() == 2 and f"is being written by process {first.pid}" in second.stderr.read()
    assert first.wait() == 0 and len({r["id"] for r in read(tmp_path / "predictions.jsonl")}) == 60


@pytest.mark.parametrize(("signal_", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGKILL, -9, "")])
def test_an_interrupt_says_so_in_one_line_and_keeps_the_rows(tmp_path, signal_, code, words):
    process = start(tmp_path)
    wait_for_rows(tmp_path / "predictions.jsonl", process, 3)
    process.send_signal(signal_)
    assert process.wait() == code
    errors = process.stderr.read()
    assert words in errors and "Traceback" not in errors and len(read(tmp_path / "predictions.jsonl")) >= 3


def test_a_disk_that_fills_up_costs_no_row(tmp_path):
    """A limit on the file's size stands in for the disk: the kernel refuses to write on, in the middle of a row."""
    import resource

    limit = 20_000
    process = start(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert process.wait() == 1
    errors = process.stderr.read()
    assert errors.startswith("error: the disk is full") and "Traceback" not in errors and errors.count("\n") == 2
    assert 0 < len(read(tmp_path / "predictions.jsonl")) < 60
    assert start(tmp_path).wait() == 0 and len(read(tmp_path / "predictions.jsonl")) == 60


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_the_same_command_finishes_once_there_is_room(small_disk):
    """Rows of 3 KB, 60 of them: the disk is full at the 30th or so."""
    other = small_disk / "other"
    other.write_bytes(b"x" * 40_000)
    cell = small_disk / "cell"
    process = start(cell)
    assert process.wait() == 1
    errors = process.stderr.read().splitlines()
    assert [line.split(":")[0] for line in errors if "out of date" not in line] == ["error", "hint"], errors
    assert "the disk is full" in errors[-2] and "the same command goes on" in errors[-1]
    kept = (cell / "predictions.jsonl").read_text()
    assert 0 < len(read(cell / "predictions.jsonl")) < 60 and kept.endswith("\n")
    assert start(cell).wait() == 1  # still full
    assert (cell / "predictions.jsonl").read_text().startswith(kept)
    other.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert start(cell).wait() == 0
    rows = read(cell / "predictions.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 60
    assert (cell / "predictions.jsonl").read_text().startswith(kept)
    assert json.loads((cell / "status.json").read_text())["state"] == "done"
