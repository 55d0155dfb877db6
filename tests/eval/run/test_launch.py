"""Launchers: what is read of them, what is submitted, what is left alone; jobs here are processes of this machine."""

import json
from pathlib import Path

import pytest

import run_pred
from d2o.errors import InputError
from eval.cli import main
from eval.config.compose import compose_cell, configs
from eval.config.launcher import Slurm, take_launcher
from eval.config.words import Words
from eval.run import job as jobs
from eval.run import launch, models
from eval.run.plan import plan

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
WORDS = ["model=random_llama", "task=mini_single", "task.length=256", "limit=4"]


def plans(results, *lines):
    with configs(CONFIGS):
        return [plan(compose_cell([*WORDS, f"results_dir={results}", *line.split()], CONFIGS)) for line in lines]


def test_the_words_of_a_launcher_are_taken_off_the_command_line():
    words = ["method=h2o", "hydra/launcher=slurm", "hydra.launcher.gpus=2", "hydra.launcher.extra.reservation=x"]
    slurm, rest = take_launcher(Words(words), CONFIGS)
    assert rest == Words(["method=h2o"]) and slurm == Slurm(gpus=2, extra={"reservation": "x"})
    assert take_launcher(Words(["budget=.1"]), CONFIGS) == (None, Words(["budget=.1"]))


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        ("hydra/launcher=slrum", "unknown launcher 'slrum'", "local, joblib, slurm"),
        ("hydra.launcher.gpus=1", "without a launcher", "hydra/launcher=local"),
        ("hydra/launcher=slurm hydra.launcher.gpu=1", "unknown key in 'hydra.launcher.gpu=1'", "did you mean"),
        ("hydra/launcher=slurm hydra.launcher.gpus=two", "gpus=two", "every key and its default"),
        ("hydra/launcher=local hydra.launcher.parallel=0", "parallel=0 is below 1", "parallel=1"),
        ("hydra/launcher=local hydra.launcher.wait=false", "wait=false", "leave it out"),
        ("engine.graph=true engine.evict_every=4", "evict_every=4 with engine.graph=true", "leave one of them out"),
    ],
)
def test_a_slip_of_the_hand_is_refused(words, what, hint, capsys, tmp_path):
    assert main([*WORDS, "method=h2o", f"results_dir={tmp_path}/r", *words.split()], run_pred.run_cell, CONFIGS) == 2
    error, advice = capsys.readouterr().err.splitlines()
    assert what in error and hint in advice and not (tmp_path / "r").exists()


def test_a_sweep_reads_the_rows_of_a_task_once_and_compares_no_configs(tmp_path, monkeypatch, capsys):
    from eval.tasks.mini.task import Mini

    read, samples = [], Mini.samples

    def beyond_the_first(self):  # which alone is tried before all else
        for i, row in enumerate(samples(self)):
            read.extend([self.name] * (i == 1))
            yield row

    monkeypatch.setattr(Mini, "samples", beyond_the_first)
    monkeypatch.setattr("omegaconf.DictConfig.__eq__", lambda *pair: pytest.fail("two configs were compared"))
    line = ["-m", *WORDS, "method=h2o,tova", "budget=.1,.2", "dry_run=true", f"results_dir={tmp_path}"]
    assert main(line, run_pred.run_cell, CONFIGS, run_pred.size_cell) == 0
    assert "4 cells to run" in capsys.readouterr().out and read == ["mini_single"]


def test_slurm_where_there_is_none_is_refused_before_anything_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = [*WORDS, "method=h2o", f"results_dir={tmp_path}/r", "hydra/launcher=slurm"]
    assert main(line, run_pred.run_cell, CONFIGS) == 2
    assert "there is no sbatch here" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_a_cell_named_twice_is_one_job(tmp_path):
    made = plans(tmp_path, "method=full budget=.1", "method=full budget=.2", "method=h2o budget=.2",
                 "method=h2o budget=.2 shard=1/2", "method=h2o budget=.2 limit=9")  # fmt: skip
    kept = launch.distinct(made)
    assert [p.composed.names["method"] for p in kept] == ["full", "h2o", "h2o"]
    assert [len(p.own) for p in kept if not p.shard] == [4, 9]


class Fake:
    """A backend whose jobs do what they are told, at once; `last` are ids of other commands."""

    name = "fake"

    def __init__(self, others=()):
        self.others, self.submitted = set(others), []

    def room(self, running):
        return 2 - running

    def submit(self, made):
        for job in made:
            self.submitted.append(job)
            job()
        return [(f"j{len(self.submitted)}", Path("log")) for _ in made]

    def alive(self):
        return self.others


def run_two(composed):
    """Stands for run_pred.run_cell: makes every row, and fails for the method random."""
    planned = plan(composed)
    if composed.names["method"] == "random":
        raise RuntimeError("layer 3 was given 12 slots")
    planned.path.mkdir(parents=True, exist_ok=True)
    (planned.path / "predictions.jsonl").write_text("".join(json.dumps({"id": s.id}) + "\n" for s in planned.own))
    return planned.path, "done"


@pytest.fixture
def backend(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(launch, "LocalBackend", lambda *_: fake)
    monkeypatch.setattr(launch, "POLL", 0.0)
    return fake


def test_the_same_command_again_submits_what_failed_and_nothing_else(tmp_path, backend, capsys):
    local, _ = take_launcher(Words(["hydra/launcher=local"]), CONFIGS)
    lines = ("method=h2o", "method=random", "method=full", "method=tova")
    first = launch.launch(plans(tmp_path, *lines), local, run_two, CONFIGS)
    assert len(first.done) == 3
    assert list(first.failed.values()) == ["0 of 4 rows, RuntimeError: layer 3 was given 12 slots"]
    status = json.loads((plans(tmp_path, lines[1])[0].path / "status.json").read_text())
    assert (status["state"], status["total"]) == ("failed", 4) and "method=random" in status["command"]
    del backend.submitted[:]
    again = launch.launch(plans(tmp_path, *lines), local, run_two, CONFIGS)
    assert len(again.done) == 3 and [job.words[-1] for job in backend.submitted] == ["method=random"]
    assert "4 cells: 3 done, 0 running, 1 to submit" in capsys.readouterr().err


def test_the_full_cache_is_submitted_once_for_all_budgets(tmp_path, backend, capsys):
    local, _ = take_launcher(Words(["hydra/launcher=local"]), CONFIGS)
    made = plans(tmp_path, "method=full budget=.1", "method=h2o budget=.1", "method=full budget=.2")
    outcome = launch.launch(made, local, run_two, CONFIGS)
    assert [job.path.parent.name.split("-")[0] for job in backend.submitted] == ["full", "h2o"]
    assert len(outcome.done) == 2


def test_a_cell_that_another_commands_job_has_is_waited_for_and_not_submitted(tmp_path, backend):
    (mine,) = plans(tmp_path, "method=h2o")
    jobs.queue(mine, "x")
    jobs.submitted(mine, "slurm", "12_3", tmp_path / "log")
    backend.others = {"12_3"}
    looks = iter(range(9))

    def alive():
        if next(looks) == 3:
            run_two(mine.composed)
            backend.others = set()
        return backend.others

    backend.alive = alive
    outcome = launch.launch([mine], take_launcher(Words(["hydra/launcher=local"]), CONFIGS)[0], run_two, CONFIGS)
    assert len(outcome.done) == 1 and backend.submitted == [] and next(looks) == 4


def test_a_scheduler_that_does_not_answer_ends_no_job(tmp_path, backend, capsys):
    (mine,) = plans(tmp_path, "method=h2o")
    jobs.queue(mine, "x")
    jobs.submitted(mine, "slurm", "7", tmp_path / "log")
    answers = iter([{"7"}, InputError("squeue does not answer"), InputError("squeue does not answer"), {"7"}, set()])

    def alive():
        answer = next(answers)
        if isinstance(answer, InputError):
            raise answer
        if not answer:
            run_two(mine.composed)
        return answer

    backend.alive = alive
    outcome = launch.launch([mine], take_launcher(Words(["hydra/launcher=local"]), CONFIGS)[0], run_two, CONFIGS)
    assert len(outcome.done) == 1 and capsys.readouterr().err.count("squeue does not answer") == 1


def test_a_job_killed_in_the_dark_is_named_with_its_log(tmp_path, backend):
    (mine,) = plans(tmp_path, "method=h2o")
    backend.submit = lambda made: [("5", tmp_path / "the.log") for _ in made]
    local, _ = take_launcher(Words(["hydra/launcher=local"]), CONFIGS)
    assert "state queued" in next(iter(launch.launch([mine], local, run_two, CONFIGS).failed.values()))
    (tmp_path / "the.log").write_text("slurmstepd: error: Detected 1 oom_kill event\nmore\n")
    assert "oom_kill" in next(iter(launch.launch([mine], local, run_two, CONFIGS).failed.values()))


def test_a_status_of_a_done_cell_is_not_overwritten(tmp_path):
    (mine,) = plans(tmp_path, "method=h2o")

    def refuses(composed):
        raise InputError("was begun with another config")

    job = jobs.CellJob(list(mine.composed.words), CONFIGS, mine.path, None, refuses)
    mine.path.mkdir(parents=True)
    (mine.path / "status.json").write_text('{"state": "done"}')
    assert job() == 2 and json.loads((mine.path / "status.json").read_text()) == {"state": "done"}


def test_a_job_that_is_to_be_requeued_is_the_same_job(tmp_path):
    (mine,) = plans(tmp_path, "method=h2o")
    job = jobs.CellJob(list(mine.composed.words), CONFIGS, mine.path, None, run_two)
    again = job.checkpoint()
    assert again.function is job and again.args == () and again.result() == 0 and mine.missing() == []


def test_a_device_map_goes_to_transformers_and_changes_no_row(tmp_path, monkeypatch):
    """On one device: that is all a machine without GPUs can say."""
    from transformers import AutoModelForCausalLM

    kept, maps, real = {}, [], AutoModelForCausalLM.from_pretrained

    def load(*args, **options):
        maps.append(options["device_map"])
        return real(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    models._last.clear()
    for name, words in {"plain": [], "mapped": ["model.device_map=auto"]}.items():
        line = ["model=tiny", "method=h2o", *WORDS[1:], f"results_dir={tmp_path}/{name}", *words]
        assert main(line, run_pred.run_cell, CONFIGS) == 0
        (file,) = (tmp_path / name).rglob("predictions.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kept[name] = [(row["id"], row["pred"], row["held_prefill"]) for row in rows]
    assert maps == [None, "auto"] and kept["plain"] == kept["mapped"]
