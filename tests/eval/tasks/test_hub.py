"""task=hub and its presets, on local files with the columns that the hub's data sets have."""

import json
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.scores.score import metric_named, score_rows, scorer_module
from eval.tasks.hub import metrics
from eval.tasks.hub.task import Hub, full_name

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "task"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(("hub_", "leval_")))
PRESS = {"context": "The key is 12345.", "question": "What is the key?", "answer": ["12345"], "answer_prefix": "It is",
         "task": "niah", "max_new_tokens": 9}  # fmt: skip
FOUR = {"_id": "x1", "context": "A long text.", "question": "Which?", "answer": "B", "domain": "d", "length": "short",
        **{f"choice_{letter}": f"the {letter}" for letter in "ABCD"}}  # fmt: skip
LEVAL = {"instructions": ["one?", "two?"], "input": "A document.", "outputs": ["A", "B C"], "evaluation": "exam"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def write(rows: list, path: Path) -> Path:
    """In the format that the name's ending says; a name without one: a folder of `save_to_disk`."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def preset(name: str, **more) -> Hub:
    from omegaconf import OmegaConf

    own = OmegaConf.load(CONFIGS / f"{name}.yaml")
    below = [OmegaConf.load(CONFIGS / f"{one}.yaml") for one in own.pop("defaults", ()) if one != "_self_"]
    node = OmegaConf.to_container(OmegaConf.merge(*below, own, more))
    return Hub(**{key: value for key, value in node.items() if not key.startswith("_")})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_a_local_file_with_the_same_columns(name, tmp_path):
    row = FOUR if name == "hub_longbench2" else LEVAL if name.startswith("leval_") else PRESS
    task = preset(name, data=str(write([row], tmp_path / "rows.jsonl")), subset=None)
    samples = list(task.samples())
    protocol = task.protocol()
    assert len(samples) == (2 if row is LEVAL else 1) and protocol["max_new_tokens"] >= 9
    for sample in samples:
        assert sample.prompt == sample.context + sample.question and "{" not in sample.prompt
    assert samples[-1].answers == [{"hub_longbench2": "B"}.get(name, "B C" if row is LEVAL else "12345")]
    assert metric_named(protocol["metric"], scorer_module("official"))
    json.dumps(protocol)


def test_the_presets_are_of_every_suite():
    assert {"hub_ruler", "hub_longbench2", "hub_infinitebench", "hub_loogle", "hub_zeroscrolls"} < set(PRESETS)
    assert sum(name.startswith("leval_") for name in PRESETS) == 19


@pytest.mark.parametrize("name", ["rows.jsonl", "data/test-00000-of-00001.parquet", "saved"])
def test_files_of_any_kind_and_columns_by_name(name, tmp_path):
    rows = [{"text": f"text {i}", "ask": "what?", "right": {"text": ["one", "two"]}, "kind": "ab"[i % 2], "hint": None}
            for i in range(4)]  # fmt: skip
    path = write(rows, tmp_path / name)
    columns = {"context": "text", "question": "ask", "answers": "right.text"}
    task = Hub(str(path.parent if path.parent.name == "data" else path), columns=columns, where={"kind": "b"},
               template="{context} / {hint}{kind} / {question}", metric="contains")  # fmt: skip
    samples = list(task.samples())
    assert [sample.id for sample in samples] == ["1", "3"], "a row keeps its number"
    assert samples[0].prompt == "text 1 / b / what?" and samples[0].answers == ["one", "two"]
    assert task.protocol()["metric"] == "hub:contains"


@pytest.mark.parametrize(
    "more, what",
    [({"columns": {"context": "text", "answers": "answer"}}, "no column 'text'"),
     ({"template": "{question}"}, "does not hold"), ({"template": "{context.__class__}"}, "names"),
     ({"template": "{context} {nothing}"}, "no column 'nothing'"), ({"metric": "bleu"}, "metric=bleu is unknown"),
     ({"where": {"task": "none"}}, "no row"), ({"split": "dev"}, "split=dev"),
     ({"max_new_tokens": 0}, "max_new_tokens"),
     ({"columns": {"context": "context"}}, "answers= is not given")],
)  # fmt: skip
def test_a_slip_is_one_line(more, what, tmp_path):
    path = write([PRESS], tmp_path / "test-0.parquet")
    columns = {"columns": {"context": "context", "question": "question", "answers": "answer"}}
    task = Hub(str(tmp_path) if "split" not in more else str(path.parent), **columns | more)
    if "split" in more:
        write([PRESS], tmp_path / "train-0.parquet")
    with pytest.raises(InputError, match=what):
        task.protocol(), list(task.samples())


def test_a_hub_that_is_away_is_one_line_and_asked_once(monkeypatch):
    import datasets

    asked = []

    def away(*words):
        asked.append(words)
        raise ConnectionError("Couldn't reach 'an/other' on the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", away)
    for _ in range(2):
        with pytest.raises(InputError, match="Couldn't reach 'an/other' on the Hub$") as caught:
            list(Hub("an/other", columns={"context": "c", "answers": "a"}).samples())
        assert "HF_HOME" in caught.value.hint
    assert len(asked) == 1


@pytest.mark.parametrize(
    "metric, prediction, answer, score",
    [("contains", "It is 12345.", "12345", 1), ("exact", "The cat.", "cat", 1), ("exact", "two cats", "cat", 0),
     ("choice", "The answer is (b).", "B", 1), ("choice", "A dog", "B", 0), ("choice", "C) it", "C. it", 1),
     ("choices", "A, C", "AC", 1), ("choices", "AC and more", "ABC", 0), ("choices", "CA", "AC", 1),
     ("number", "3 and 4, so the answer is 1,200.", "1200", 1), ("number", "It is 7", "The answer is 8", 0),
     ("output", "So the final output is [1, 2]", "[1,2]", 1), ("output", "[1, 3]", "[1,2]", 0),
     ("first_number", "71 of 72", "72", 0), ("rouge1", "a b", "a b", 1), ("rougeL", "a c", "b d", 0),
     ("rouge", "a b c", "a b c", 1)],
)  # fmt: skip
def test_metrics(metric, prediction, answer, score):
    assert getattr(metrics, metric)(prediction, answer, None) == pytest.approx(score)
    assert full_name(metric) == f"hub:{metric}"


def test_ruler_counts_the_share_of_all_answers(tmp_path):
    row = {"pred": "one and two", "answers": ["one", "two", "three", "four"]}
    protocol = preset("hub_ruler", data=str(write([PRESS], tmp_path / "r.jsonl")), subset=None).protocol()
    assert score_rows("hub", [row], "official", protocol).value == 50.0
