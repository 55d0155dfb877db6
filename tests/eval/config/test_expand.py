"""What a command becomes: groups of tasks, lists of tasks, sweeps, and their one group in W&B."""

from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.config.compose import configs
from eval.config.expand import expand
from eval.config.words import Words

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
MEMBERS = 8


def one(*words):
    return expand(Words(words), CONFIGS)


def sweep(*words):
    with configs(CONFIGS):
        return expand(Words(words), CONFIGS, sweep=True)


def test_the_default_task_is_a_group_with_the_full_cache_beside_it():
    found = one("method=d2o", "budget=0.2", "method.merge=false")
    assert found.grouped and found.asked == 1 and len(found.jobs) == 2 * MEMBERS
    assert found.jobs[0].list == ["limit=20", "method=full", "task=mini_single"]
    own = ["method=d2o", "budget=0.2", "method.merge=false", "limit=20", "task=mini_single"]
    assert found.jobs[1].list == own


def test_a_sweep_runs_the_full_cache_once():
    found = sweep("task=mini", "budget=0.1,0.2", "limit=3")
    assert found.asked == 2 and len(found.jobs) == 3 * MEMBERS
    assert sum("method=full" in job for job in found.jobs) == MEMBERS
    assert all("limit=3" in job and "limit=20" not in job for job in found.jobs)


@pytest.mark.parametrize("words", [["task=mini_single", "budget=0.1"], ["task=nonsense"]])
def test_a_plain_task_is_left_alone(words):
    found = one(*words)  # one that nobody knows is refused where it is composed
    assert found.jobs == [Words(words)] and not found.grouped and found.tables == []


def test_a_list_of_tasks_is_a_cell_of_each_and_each_once():
    found = one("task=lm_eval", "task.tasks=[gsm8k, piqa,gsm8k]", "limit=3")
    assert [job.list for job in found.jobs] == [
        ["task=lm_eval", "limit=3", f"task.tasks=[{name}]"] for name in ("gsm8k", "piqa")]  # fmt: skip
    with pytest.raises(InputError, match="names no task"):
        one("task=lm_eval", "task.tasks=[]")


def test_a_sweep_has_one_group_in_wandb_which_is_the_same_every_time():
    line = ["task=mini_single", "method=h2o,d2o", "wandb.mode=offline"]
    groups = {job.get("wandb.group") for job in sweep(*line).jobs}
    assert groups == {"sweep-f8fa900c"}
    assert {job.get("wandb.group") for job in sweep(*line, "wandb.group=mine").jobs} == {"mine"}
    assert {job.get("wandb.group") for job in sweep(*line[:2]).jobs} == {None}
    assert sweep("task=mini_single", line[2]).jobs[0].get("wandb.group") is None
