"""What W&B gets of a task that measures: native tables and images, read back from the file of an offline run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import run_pred
from eval.cli import main

ROOT = Path(run_pred.__file__).parent
RUNS = {
    "needle": (["task.lengths=[96]", "task.depths=[0,100]"], {"needle": 2, "needle_by_layer": 8},
               ["recall", "survival", "held"]),
    "ppl": (["task.length=64", "task.segments=2"], {"ppl": 2, "ppl_by_position": 8, "ppl_pace": 2}, ["nll", "held"]),
    "efficiency": (["task.batches=[1,2]", "task.prompts=[32]", "task.new=[4]", "task.largest=true",
                    "task.most_batch=2", "task.memory_gb=8"], {"efficiency": 2, "largest_batch": 1},
                   ["speed", "memory", "held"]),
    "lm_eval": (["task.tasks=[local_choice]", "limit=2"], {"lm_eval": 2}, ["held"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def readback(shared):
    spec = importlib.util.spec_from_file_location("readback", shared / "examples" / "wandb" / "readback.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", RUNS)
def test_tables_and_images_of_a_task(task, tmp_path, readback, capsys):
    pytest.importorskip("wandb")
    if task == "lm_eval":
        pytest.importorskip("lm_eval")
    words, tables, images = RUNS[task]
    words = [f"task={task}", "model=random_llama", "method=h2o", "budget=0.5", f"results_dir={tmp_path}", *words]
    assert main([*words, "wandb.mode=offline"], run_pred.run_cell, ROOT / "configs") == 0
    out, err = capsys.readouterr()
    assert "W&B" not in err
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    history = readback.load(file)["history"]
    counts = {key.removesuffix(".nrows"): n for line in history for key, n in line.items() if key.endswith(".nrows")}
    assert counts == tables | {"ledger": 4}
    kinds = [(key.removesuffix("._type"), line) for line in history for key, value in line.items()
             if key.endswith("._type") and value == "image-file"]  # fmt: skip
    assert len(kinds) == len(images) and all(any(name in key for key, _ in kinds) for name in images)
    assert all(re.fullmatch(r"[\w.=-]+", name) for name, _ in kinds), "a per cent sign breaks the address of an upload"
    for name, line in [*kinds, *((name, line) for line in history for name in counts if f"{name}.path" in line)]:
        kept = folder / "files" / line[f"{name}.path"]
        assert kept.stat().st_size == line[f"{name}.size"]
        if name in counts:
            shown = json.loads(kept.read_text())
            assert len(shown["data"]) == counts[name] and len(set(shown["columns"])) == line[f"{name}.ncols"] > 2
    left = sorted(tmp_path.glob(f"*/*/{task}*/figures/*.png"))
    assert len(left) == len(images) and all(path.name in out for path in left), "the figures lie beside the rows too"


def test_a_run_says_whose_it_is_and_has_its_rows_and_a_running_score(tmp_path, readback):
    pytest.importorskip("wandb")
    words = ["task=mini_single", "task.length=256", "model=tiny", "method=h2o", "budget=0.5", f"results_dir={tmp_path}"]
    words += ["wandb.mode=offline", "wandb.tags=[night,small]", "wandb.notes=a try", "wandb.job_type=check"]
    for limit in (1, 3):  # begun, and gone on with
        assert main([*words, f"limit={limit}"], run_pred.run_cell, ROOT / "configs") == 0
    runs = {}
    for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb"):
        found = readback.load(file)
        runs[len([line for line in found["history"] if "score_so_far" in line])] = found, list(readback.records(file))
    (first, _), (second, records) = runs[1], runs[2]
    assert (second["run"]["job_type"], second["run"]["tags"]) == ("check", ["night", "small"])
    assert {one.run.notes for one in records if one.WhichOneof("record_type") == "run"} == {"a try"}
    defined = [one.metric for one in records if one.WhichOneof("record_type") == "metric"]
    assert "done" in {one.name for one in defined}
    assert {one.step_metric for one in defined if one.glob_name == "*"} == {"done"}
    steps = [(line["done"], line["score_so_far"]) for line in second["history"] if "score_so_far" in line]
    assert [done for done, _ in steps] == [2, 3] and steps[-1][1] == pytest.approx(second["summary"]["score"])
    assert first["history"][0]["score_so_far"] in (0, 100)
    ((name, files),) = [(name, files) for kind, name, files in second["artifacts"] if kind == "cell"]
    assert sorted(files) == ["config.json", "predictions.jsonl"] and name.startswith("cell-")
    panels = {key for line in second["history"] for key, value in line.items() if value == "image-file"}
    assert panels == {"held._type"}
