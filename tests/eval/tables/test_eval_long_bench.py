"""The command that scores, as a user calls it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import eval_long_bench
from d2o.errors import InputError
from eval.scores.holds_more import FOOTNOTE
from eval.tasks.longbench.task import SETS, SETS_E, scoring_protocol

ROOT = Path(__file__).resolve().parents[3]
ANSWERS = {"passage_retrieval_en": "Paragraph 1", "passage_retrieval_zh": "段落1"}  # other sets take any word


def row(i: int, pred: str, answer: str = "red", **more) -> dict:
    return {"id": str(i), "pred": pred, "answers": [answer], "all_classes": ["red", "blue"], "length": 5000, **more}


def cell(results: Path, task: str, rows: list, method: str = "h2o", budget: float = 0.2, **more) -> Path:
    """A cell's folder as run_pred.py writes it; a row given as text is written as it is, without a newline."""
    folder = results / "tiny" / f"{method}-default-b{budget}" / task
    folder.mkdir(parents=True)
    lines = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in rows]
    (folder / "predictions.jsonl").write_text("".join(lines))
    names = {"model": "tiny", "method": method, "variant": "default", "budget": budget, "task": task, "seed": 0}
    protocol = scoring_protocol(task)
    config = {"cell": names, "protocol": protocol, "protocol_hash": "p" * 8} | more
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "status.json").write_text(json.dumps({"state": "done", "total": len(rows)}))
    return folder


def run(*words) -> None:
    eval_long_bench.main([str(word) for word in words])


def command(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    line = [sys.executable, str(ROOT / "eval_long_bench.py"), *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=60)


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| --")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_all_cells(tmp_path, capsys):
    realised = [row(1, "red", budget_realised=0.2), row(2, "blue", budget_realised=0.21)]
    cell(tmp_path, "longbench_trec", realised)
    cell(tmp_path, "longbench_trec", [row(1, "red")], method="full", budget=1.0)
    folder = cell(tmp_path, "longbench_qasper", [row(1, "red red")])
    (folder / "status.json").write_text(json.dumps({"total": 7}))
    run(f"results_dir={tmp_path}", f"json={tmp_path / 'out.json'}")
    text = capsys.readouterr().out
    assert text.index("longbench_qasper") < text.index("longbench_trec")
    assert table_rows(text) == [
        ["model", "method", "variant", "budget", "realised", "rows", "score"],
        ["tiny", "h2o", "default", "0.2", "", "1/7", "66.67"],
        ["model", "method", "variant", "budget", "realised", "rows", "score", "vs full", "95 % interval"],
        ["tiny", "full", "default", "1.0", "", "1", "100.00", "", ""],
        ["tiny", "h2o", "default", "0.2", "0.2050", "2", "50.00", "+0.00 (n=1)", ""],
    ]
    record = json.loads((tmp_path / "out.json").read_text())
    last = record["cells"][-1]
    assert (last["task"], last["method"], last["n"], last["score"]) == ("longbench_trec", "h2o", 2, 50.0)
    assert last["budget"] == 0.2 and last["budget_realised"] == pytest.approx(0.205)
    assert record["scorer"] == "official" and record["means"] == []


def test_unequal_budgets_are_marked_in_every_table(tmp_path, capsys):
    for method, held in (("h2o", 0.2), ("d2o", 0.203)):
        for name in SETS:
            answer = ANSWERS.get(name, "red")
            cell(tmp_path, f"longbench_{name}", [row(1, answer, answer, budget_realised=held)], method=method)
    run(f"results_dir={tmp_path}", f"json={tmp_path / 'out.json'}")
    text = capsys.readouterr().out
    shown = {(line[1], line[4]) for line in table_rows(text) if line[1] in ("h2o", "d2o")}
    assert shown == {("h2o", "0.2000"), ("d2o", "0.2030*")}
    assert text.count(FOOTNOTE) == len(SETS) + 1  # a table per set, and the means
    record = json.loads((tmp_path / "out.json").read_text())
    assert {c["method"]: c["uneven"] for c in record["cells"]} == {"h2o": False, "d2o": True}
    assert {m["method"]: m["uneven"] for m in record["means"]} == {"h2o": False, "d2o": True}


def test_a_budget_in_bytes_is_one_of_its_own(tmp_path, capsys):
    for budget in (2.0**20, 0.2, "1MiB"):
        cell(tmp_path, "longbench_trec", [row(1, "red", budget_realised=0.1)], budget=budget)
    run(f"results_dir={tmp_path}")
    assert [line[3] for line in table_rows(capsys.readouterr().out)[1:]] == ["1MiB", "0.2", "1048576.0"]


def test_a_turned_knob_is_told_apart(tmp_path, capsys):
    folder = cell(tmp_path, "longbench_trec", [row(1, "red")]).parent
    cell(tmp_path, "longbench_trec", [row(1, "blue")], budget=0.3).parent.rename(f"{folder}-0a1b2c3d")
    run(f"results_dir={tmp_path}")
    assert [line[2] for line in table_rows(capsys.readouterr().out)[1:]] == ["default", "default"], "budgets differ"
    config = Path(f"{folder}-0a1b2c3d") / "longbench_trec" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"cell": told["cell"] | {"budget": 0.2}}))
    run(f"results_dir={tmp_path}")
    variants = sorted(line[2] for line in table_rows(capsys.readouterr().out)[1:])
    assert variants == ["default", "default-0a1b2c3d"], "nothing else tells them apart"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"identity": {"method.recent": 8, "seed": 0}}))
    run(f"results_dir={tmp_path}")
    variants = sorted(line[2] for line in table_rows(capsys.readouterr().out)[1:])
    assert variants == ["default", "default recent=8"], "a knob is told, and no hash"


def test_means_where_every_set_is_there(tmp_path, capsys):
    for name in SETS:
        cell(tmp_path, f"longbench_{name}", [row(1, ANSWERS.get(name, "red"), ANSWERS.get(name, "red"))])
    run(f"results_dir={tmp_path}", f"json={tmp_path / 'out.json'}")
    assert "means" in capsys.readouterr().out
    (mean,) = json.loads((tmp_path / "out.json").read_text())["means"]
    assert mean["n"] == 21 and mean["means"]["mean of 16 English sets"] == pytest.approx(
        100 * 15 / 16
    )  # count finds none
    status = tmp_path / "tiny/h2o-default-b0.2/longbench_trec/status.json"
    status.write_text(json.dumps({"total": 9}))
    run(f"results_dir={tmp_path}")
    assert "means" not in capsys.readouterr().out, "an unfinished cell is no set"


def test_longbench_e_by_bucket_with_an_empty_bucket_blank(tmp_path, capsys):
    for name in SETS_E:
        answer = "Paragraph 1" if name == "passage_retrieval_en" else "red"
        cell(tmp_path, f"longbench_e_{name}", [row(1, answer, answer), row(2, answer, answer, length=9)])
    run(f"results_dir={tmp_path}", f"json={tmp_path / 'out.json'}")
    text = capsys.readouterr().out
    assert "nan" not in text.lower()
    header, first = table_rows(text)[:2]
    assert header[-3:] == ["0-4k", "4-8k", "8k+"] and first[-3:] == ["100.00", "100.00", ""]
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["cells"][0]["buckets"]["8k+"] == {"n": 0, "score": None}
    (mean,) = record["means"]
    assert mean["means"] == {f"LongBench-E {k}": pytest.approx(100 * 12 / 13) for k in ("0-4k", "4-8k")}


@pytest.mark.parametrize("tail", ['{"id": "2", "pred": "bl', '{"id": "2"\n', '{"id": "2", "pred": "blue"}'])
def test_a_torn_last_line_of_a_cell_is_left_out_with_a_note(tmp_path, capsys, tail):
    cell(tmp_path, "longbench_trec", [row(1, "red"), tail])
    run(f"results_dir={tmp_path}")
    out = capsys.readouterr()
    assert table_rows(out.out)[1][-2:] == ["1/2", "100.00"] and "last line is torn" in out.err


def test_a_bad_line_in_the_middle_of_a_cell_and_a_doubled_row(tmp_path):
    folder = cell(tmp_path, "longbench_trec", [row(1, "red"), '{"id"\n', row(2, "red")])
    with pytest.raises(InputError, match=r"predictions.jsonl, line 2: not a whole line"):
        run(f"results_dir={tmp_path}")
    (folder / "predictions.jsonl").write_text((json.dumps(row(1, "red")) + "\n") * 2)
    with pytest.raises(InputError, match="two rows have the id '1'"):
        run(f"results_dir={tmp_path}")


def test_a_folder_without_config_is_left_out_with_a_note(tmp_path, capsys):
    cell(tmp_path, "longbench_trec", [row(1, "red")])
    (cell(tmp_path, "longbench_qasper", [row(1, "red")]) / "config.json").unlink()
    run(f"results_dir={tmp_path}")
    out = capsys.readouterr()
    assert "longbench_qasper" not in out.out and "no config.json" in out.err


def test_protocols_are_not_mixed_unless_told_to(tmp_path, capsys):
    cell(tmp_path, "longbench_trec", [row(1, "red")])
    cell(tmp_path, "longbench_trec", [row(1, "red")], method="tova", protocol_hash="another")
    run(f"results_dir={tmp_path}")
    assert len(table_rows(capsys.readouterr().out)) == 4, "a table for each"
    run(f"results_dir={tmp_path}", "mix_protocols=true")
    assert len(table_rows(capsys.readouterr().out)) == 3


WORDS = {
    "scorer=offical": "scorer=offical",
    "scorr=official": "did you mean scorer",
    "+scorr=official": "did you mean scorer",
    "+scorer=official": "without the sign",
    "~scorer": "without the sign",
    "scorer": "scorer=value",
    "e=perhaps": "perhaps",
    "buckets=[8000,4000]": "growing",
    "buckets=[]": "growing",
    "preds=/no/such/folder": "/no/such/folder",
    "results_dir=/no/such/folder": "run_pred.py",
    "results_dir=": "results_dir= is empty",
    "json=/no/such/folder/out.json": "cannot write",
    "table=main": "unknown table 'main'",
    "report=html": "write report=true",
    "report=[1]": "write report=true",
    "report=/no/such/folder/r.html": "cannot write",
    "plots=3": "write plots=true",
    "preds=a(b": "quote",
    "--multirun": "--multirun",
}


@pytest.mark.parametrize("word", WORDS)
def test_bad_words(word):
    with pytest.raises(InputError) as caught:
        run(word)
    assert WORDS[word] in f"{caught.value} {caught.value.hint}" and caught.value.hint


def test_an_empty_folder_of_results_or_of_predictions(tmp_path):
    with pytest.raises(InputError, match="no predictions under") as caught:
        run(f"results_dir={tmp_path}")
    assert "preds=DIR" in caught.value.hint
    with pytest.raises(InputError, match="no predictions of a known set"):
        run(f"preds={tmp_path}")


def test_errors_are_two_lines_and_exit_code_2(tmp_path):
    (tmp_path / "trec.jsonl").write_text('{"pred": "a"\n')
    for words in (["scorer=x"], ["+foo=1"], [f"preds={tmp_path}"], [f"results_dir={tmp_path}"]):
        done = command(*words)
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and done.stdout == ""
        assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")


def test_help_is_quick_and_names_every_key():
    begun = time.monotonic()
    done = command("--help")
    assert done.returncode == 0 and time.monotonic() - begun < 5
    for word in ("preds=DIR", "results_dir:", "scorer:", "table:", "report:", "json:", "mix_protocols:"):
        assert word in done.stdout


def test_nothing_heavy_is_imported(tmp_path):
    cell(tmp_path, "longbench_trec", [row(1, "red")])
    heavy = "torch transformers datasets wandb matplotlib jieba rouge rouge_score nltk pandas d2o.engine baselines"
    code = f"import sys, eval_long_bench; eval_long_bench.main(['results_dir={tmp_path}']); "
    code += f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
