"""LongBench as a task: configs, prompts, limits, strictness about files."""

import hashlib
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from d2o.errors import InputError
from eval.config.compose import compose_cell, configs, options
from eval.scores import fixed as metrics_fixed
from eval.scores import official as metrics_official
from eval.tasks.longbench.task import METRICS, SETS, SETS_E, LongBench

ROOT = Path(__file__).resolve().parents[3]
ROW = {"input": "who?", "context": "{Ann} sat.", "answers": ["Ann"], "length": 2, "all_classes": None, "_id": "x1"}


@pytest.fixture
def folder(tmp_path):
    """A data folder and prompt folder in one, with a set of two rows."""
    (tmp_path / "dataset2prompt.json").write_text(json.dumps({"qasper": "Read {context}\nQ: {input}\nA:"}))
    (tmp_path / "dataset2maxlen.json").write_text(json.dumps({"qasper": 9}))
    write(tmp_path, [ROW, ROW | {"_id": None}])
    return tmp_path


def write(folder: Path, rows: list, name: str = "qasper") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def task(folder: Path, name: str = "qasper", **more) -> LongBench:
    return LongBench(name, data_dir=str(folder), prompts_dir=str(folder), **more)


def test_every_set_has_a_config_and_a_metric_in_both_scorers():
    found = {path.stem for path in (ROOT / "configs/task").glob("longbench_*.yaml")}
    found -= {"longbench_en", "longbench_e"}  # groups
    assert found == {f"longbench_{name}" for name in SETS} | {f"longbench_e_{name}" for name in SETS_E}
    assert (len(SETS), len(SETS_E)) == (21, 13)
    for module in (metrics_official, metrics_fixed):
        assert all(callable(getattr(module, metric)) for metric in METRICS.values())
    for name in found:
        first = (ROOT / f"configs/task/{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# python run_pred.py ") and f"task={name} " in first
        with initialize_config_dir(config_dir=str(ROOT / "configs"), version_base="1.3"):
            assert instantiate(compose(f"task/{name}").task).name == name


def test_what_the_sets_share_is_no_task_of_its_own():
    assert "base" not in options(ROOT / "configs", "task")
    with configs(ROOT / "configs"), pytest.raises(InputError, match="unknown task 'base/longbench'"):
        compose_cell(["task=base/longbench"], ROOT / "configs")


def test_a_set_says_all_that_it_is():
    """Key for key and in this order: what identities and the lines of tables are made of."""
    with configs(ROOT / "configs"):
        cfg = compose_cell(["task=longbench_e_trec", "task.data_dir=here"], ROOT / "configs").cfg.task
    said = {"_target_": "eval.tasks.longbench.task.LongBench", "name": "trec", "e": True}
    said |= {"data_dir": "here", "prompts_dir": None}
    said |= {"question": "before", "chat": None, "turns": 1, "max_new_tokens": None}
    assert list(cfg.items()) == list(said.items())


def test_prompt_is_context_plus_question(folder):
    samples = list(task(folder).samples())
    assert samples[0].prompt == "Read {Ann} sat.\nQ: who?\nA:"
    assert (samples[0].context, samples[0].question) == ("Read {Ann} sat.", "\nQ: who?\nA:")
    assert samples[0].id == "x1" and samples[0].answers == ["Ann"] and samples[0].length == 2


def test_ids_are_unique_and_do_not_depend_on_the_other_rows(folder):
    nameless = ROW | {"_id": None}
    write(folder, [nameless, ROW, ROW, nameless | {"input": "when?"}])
    ids = [sample.id for sample in task(folder).samples()]
    assert ids[1:3] == ["x1", "x1-2"] and len(set(ids)) == 4
    write(folder, [nameless | {"input": "when?"}, nameless])
    assert [sample.id for sample in task(folder).samples()] == [ids[3], ids[0]]


def test_protocol_names_what_changes_a_score(folder):
    protocol = task(folder).protocol()
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["template"] == "Read {context}\nQ: {input}\nA:" and protocol["max_new_tokens"] == 9
    assert (protocol["metric"], protocol["first_line"], protocol["buckets"]) == ("qa_f1", False, [])
    assert str(folder) not in json.dumps(protocol)
    assert task(folder, e=True).protocol()["buckets"] == [4000, 8000]


def test_chat_stop_and_truncation_rules():
    plain = {name for name in SETS if not LongBench(name).chat}
    assert plain == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    assert {name for name in SETS if LongBench(name).stop} == {"samsum"} and LongBench("samsum").stop == ("\n",)
    assert LongBench("trec").truncate == "middle"


BAD = {
    "torn": (json.dumps(ROW)[:-9], "line 2: not a whole line"),
    "not an object": ("[1]", "line 2: a list"),
    "no answers": ({k: v for k, v in ROW.items() if k != "answers"}, "line 2: no answers"),
    "empty answers": (ROW | {"answers": []}, "line 2: answers is"),
    "answers of numbers": (ROW | {"answers": [3]}, "line 2: answers is"),
    "no input": ({k: v for k, v in ROW.items() if k != "input"}, "line 2: no input"),
    "length as text": (ROW | {"length": "2"}, "line 2: length is '2'"),
    "empty context": (ROW | {"context": " \n"}, "line 2: the context is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_file_and_line_before_any_sample(folder, case):
    row, what = BAD[case]
    write(folder, [ROW, row])
    with pytest.raises(InputError, match=what) as caught:
        next(task(folder).samples())
    assert "qasper.jsonl" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_called_so(folder, indent):
    (folder / "qasper.jsonl").write_text("\n" + json.dumps([ROW, ROW], indent=indent))
    with pytest.raises(InputError, match="qasper.jsonl is a JSON array, and not JSON lines"):
        list(task(folder).samples())


def test_bytes_that_are_not_utf8(folder):
    (folder / "qasper.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n\xff\xfe\n")
    with pytest.raises(InputError, match="line 2"):
        next(task(folder).samples())


def test_a_classification_set_needs_its_classes(folder):
    (folder / "dataset2prompt.json").write_text(json.dumps({"trec": "{context}{input}"}))
    (folder / "dataset2maxlen.json").write_text(json.dumps({"trec": 9}))
    write(folder, [ROW], "trec")
    with pytest.raises(InputError, match="line 1: all_classes is None"):
        next(task(folder, "trec").samples())


def test_length_may_be_absent_except_where_it_is_scored_by(folder):
    write(folder, [ROW | {"length": None}])
    write(folder, [ROW | {"length": None}], "qasper_e")
    assert next(task(folder).samples()).length is None
    with pytest.raises(InputError, match="line 1: length is None"):
        next(task(folder, e=True).samples())


def test_missing_files_and_folders(folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no data file .*qasper_e.jsonl") as caught:
        next(task(folder, e=True).samples())
    assert "plain set only" in caught.value.hint
    (folder / "qasper.jsonl").unlink()
    with pytest.raises(InputError, match="no data file") as caught:
        next(task(folder).samples())
    assert "task.data_dir=" in caught.value.hint
    monkeypatch.setenv("D2O_DATA", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no prompt file") as caught:
        LongBench("qasper").protocol()
    assert "prepare_data.py" in caught.value.hint
    with pytest.raises(InputError, match="longbench_nope"):
        LongBench("nope").protocol()
    (folder / "qasper.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        next(task(folder).samples())


@pytest.mark.parametrize(
    ("prompt", "limit", "what"),
    [
        ("{context}{context}{input}", 9, "once"),
        ("{input}", 9, "once"),
        ("{context}{question}", 9, "asks for"),
        ("{context}{", 9, "asks for"),
        ("{context}{input}", 0, "limit"),
        (None, 9, "no entry"),
        ("{context}{input}", "9", "no entry"),
    ],
)
def test_bad_prompt_files(folder, prompt, limit, what):
    (folder / "dataset2prompt.json").write_text(json.dumps({"qasper": prompt}))
    (folder / "dataset2maxlen.json").write_text(json.dumps({"qasper": limit}))
    with pytest.raises(InputError, match=what):
        next(task(folder).samples())


def test_broken_prompt_file(folder):
    (folder / "dataset2prompt.json").write_text('{"qasper": ')
    with pytest.raises(InputError, match="not JSON"):
        next(task(folder).samples())


@pytest.mark.parametrize("name", SETS)
def test_real_rows(shared, name):
    """Against the official files: the prompt is the template filled by str.format, the limit is the table's."""
    data, protocol = shared / "data/longbench/subset", shared / "data/longbench/protocol"
    one = LongBench(name, data_dir=str(data), prompts_dir=str(protocol))
    rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]
    template = json.loads((protocol / "dataset2prompt.json").read_text(encoding="utf-8"))[name]
    samples = list(one.samples())
    assert [sample.prompt for sample in samples] == [template.format(**row) for row in rows]
    assert all(sample.prompt == sample.context + sample.question for sample in samples)
    assert len({sample.id for sample in samples}) == len(rows)
    assert one.max_new_tokens == json.loads((protocol / "dataset2maxlen.json").read_text())[name]


def test_limits_of_the_specification(shared):
    limits = {128: "narrativeqa qasper dureader samsum", 512: "gov_report qmsum multi_news vcsum"}
    limits |= {64: "multifieldqa_en multifieldqa_zh trec lsht lcc repobench-p"}
    limits |= {32: "hotpotqa 2wikimqa musique triviaqa passage_count passage_retrieval_en passage_retrieval_zh"}
    protocol = str(shared / "data/longbench/protocol")
    ours = {name: LongBench(name, prompts_dir=protocol).max_new_tokens for name in SETS}
    assert ours == {name: limit for limit, names in limits.items() for name in names.split()}


def test_shared_prompts_are_the_pinned_ones(shared):
    from scripts.prepare_data import PROMPTS_SHA256

    for name, sha256 in PROMPTS_SHA256.items():
        content = (shared / "data/longbench/protocol" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
