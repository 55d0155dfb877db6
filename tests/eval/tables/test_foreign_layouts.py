"""Folders of other harnesses, one of each layout under tests/foreign, and ours in their layouts."""

import json
import shutil
from pathlib import Path

import pytest
from test_eval_long_bench import row, run, table_rows

from d2o.errors import InputError
from eval.scores.results import score_cells
from eval.tables.foreign.score import score_folder
from eval.tasks.longbench.task import scoring_protocol
from tests.made_cells import write_cell

FOREIGN = Path(__file__).resolve().parents[2] / "foreign"
KVPRESS = "org--model__snapkv__0.80"


def scores(folder: Path, said: list | None = None, e: bool = False) -> dict[str, float]:
    notes = [] if said is None else said
    return {r.folder: r.score.value for r in score_folder(folder, "official", e, None, notes.append)}


@pytest.mark.parametrize(
    "layout, found",
    [("longbench", {"pred/my-model/hotpotqa": 50, "pred/my-model/trec": 50, "pred_e/my-model/trec": 50}),
     ("factory", {f"llama_128/{m}/{s}": 50 for m in ("FullKV", "SnapKV") for s in ("hotpotqa", "trec")}),
     ("kvpress", {f"{KVPRESS}/hotpotqa": 50, "org--model__knorm__0.50/ruler 4096 niah_multivalue": 50,
                  "org--model__knorm__0.50/ruler 4096 qa_1": 100}),
     ("lm_eval", {"org__model/gsm8k": 50, "org__model/hotpotqa": 50})],
)  # fmt: skip
def test_a_folder_of_each_layout_is_scored_in_one_command(layout, found, capsys):
    said: list[str] = []
    assert scores(FOREIGN / layout, said) == found
    missing = [line for line in said if line.startswith(f"missing in {layout} files: ")]
    assert len(missing) == 1 and "slots that were held" in missing[0]
    run(f"preds={FOREIGN / layout}")
    out, err = capsys.readouterr()
    assert {cells[0] for cells in table_rows(out)} >= set(found) and missing[0] in err
    if layout == "kvpress":
        assert [KVPRESS + "/hotpotqa", "org/model", "snapkv", "0.2", "2", "50.00"] in table_rows(out)


def test_layouts_in_one_folder_and_means_of_each_run(tmp_path, capsys):
    from eval.tasks.longbench.means import ENGLISH

    right = {"trec": "Food", "passage_count": "3", "passage_retrieval_en": "Paragraph 3"}
    for name in ENGLISH:
        answer = right.get(name, "red fox")
        line = json.dumps({"pred": answer, "answers": [answer], "all_classes": ["Food", "Date"], "length": 9})
        (tmp_path / "pred").mkdir(exist_ok=True)
        (tmp_path / "pred" / f"{name}.jsonl").write_text(line + "\n")
    shutil.copytree(FOREIGN / "kvpress", tmp_path / "press")
    run(f"preds={tmp_path}")
    out, err = capsys.readouterr()
    assert ["mean of pred", "score"] in table_rows(out) and ["mean of 16 English sets", "100.00"] in table_rows(out)
    assert err.count("note: missing in") == 2


@pytest.mark.parametrize(
    "name, text, what",
    [("a/predictions.csv", "predicted_answer\nx\n", "no columns predicted_answer and answer"),
     ("a/predictions.csv", "predicted_answer,answer,task\nx,,t\n", "row 2: no answers"),
     ("samples_gsm8k_2026-01-02T03-04-05.1.jsonl", '{"doc": {}, "bleu": 7}\n', "none of its metrics"),
     ("samples_longbench_trec_2026-01-02T03-04-05.1.jsonl", '{"doc": 1}\n', "line 1: no doc"),
     ("trec/SnapKV.json", "[1]\n", "SnapKV.json, line 1"), ("x.json", "{}", "no predictions of a known set")],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line_with_its_place(tmp_path, name, text, what):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=what):
        scores(tmp_path)


def test_rows_of_an_unknown_data_set_are_left_out_with_a_note(tmp_path):
    said: list[str] = []
    shutil.copytree(FOREIGN / "kvpress", tmp_path / "press")
    (config,) = tmp_path.glob("press/ruler*/config.yaml")
    config.write_text(config.read_text().replace("dataset: ruler", "dataset: aime25"))
    assert set(scores(tmp_path, said)) == {f"press/{KVPRESS}/hotpotqa"}
    assert sum("of aime25" in line for line in said) == 2


@pytest.fixture
def results(tmp_path):
    place = tmp_path / "results"
    for task, method in (("longbench_trec", "h2o"), ("longbench_hotpotqa", "d2o"), ("longbench_e_trec", "d2o")):
        rows = [{**row(i, "Food" if i % 3 else "Date", "Food"), "all_classes": ["Food", "Date"]} for i in range(9)]
        write_cell(place, method, 0.2, task, rows, {"task": task, **scoring_protocol(task)})
    scored = {"metric": "mini:told", "first_line": False, "over_answers": "max", "buckets": []}
    write_cell(place, "d2o", 0.2, "mini_single", [row(0, "red", "red")], scored)
    return place


@pytest.mark.parametrize("form", ["longbench", "lm_eval"])
def test_our_cells_come_back_with_the_same_scores(results, form, tmp_path, capsys):
    run(f"results_dir={results}", f"export={form}", f"out={tmp_path / 'out'}")
    ours = {r.folder.replace("tiny/", "tiny-"): r.score.value for r in score_cells(results, "official", lambda _: None)}
    theirs = scores(tmp_path / "out")
    if form == "longbench":
        assert "1 cells are left out: their task is not LongBench" in capsys.readouterr().err
        assert theirs == {
            f"pred{'_e' * ('_e_' in key)}/{key.replace('longbench_e_', '').replace('longbench_', '')}": value
            for key, value in ours.items()
            if "mini" not in key
        }
        (line, *_) = (tmp_path / "out/pred/tiny-h2o-default-b0.2/trec.jsonl").read_text().splitlines()
        assert list(json.loads(line)) == ["pred", "answers", "all_classes", "length"]
        return
    assert sorted(theirs.values()) == sorted(ours.values()) and len(theirs) == 4
    (table,) = (tmp_path / "out/tiny-h2o-default-b0.2").glob("results_*.json")
    found = json.loads(table.read_text())
    assert found["results"]["longbench_trec"]["score,none"] == pytest.approx(6 / 9)
    assert found["n-samples"]["longbench_trec"] == {"original": 9, "effective": 9}


@pytest.mark.parametrize(
    "words", [["export=me", "out=x"], ["export=longbench"], ["export=lm_eval", "out=x", "table=mini"]]
)
def test_bad_words_of_an_export(words):
    with pytest.raises(InputError, match="export"):
        run(*words)
