"""What killed commands leave beside a file goes with the next command; what living ones write stays."""

import os
import subprocess

from eval.cells.files import sweep


def test_leftovers_of_the_dead_go_and_nothing_else(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = [f".x.json.{os.getpid()}.new", ".status.json.new", "x.new", ".x.json.1-of-8.new", f".x.{gone.pid}.newer"]
    for name in [*kept, f".x.json.{gone.pid}.new", f".y.{gone.pid}.new"]:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
