"""scripts/measure/paired.py: differences over the rows or stretches that both have, task by task."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from d2o.errors import InputError
from scripts.measure import paired

OLD = Path(__file__).resolve().parents[1] / "eval" / "cells" / "old_cells" / "cells"


def text(shift, segments=3):
    """Segments of three stretches; `shift` nats above what the base has, twice that in the last stretch."""
    found = []
    for s in range(segments):
        nll = [2.0 + s + 0.1 * i + shift * (1 + (i == 2)) for i in range(3)]
        found.append({"id": f"ppl-{s}", "nll": sum(nll) / 3, "bucket_from": [8, 16, 24], "bucket_nll": nll})
    return {"nll": SimpleNamespace(rows=found)}


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_nats_by_stretch():
    head, rule, base, worse, fewer = paired.lines({"none": text(0), "more": text(0.3), "two": text(-0.3, 2)}, "none")
    assert "less none" in head and head.count("|") == rule.count("|") == base.count("|") == 7
    assert cells(base) == ["none", "3.100", "", "", "", ""]
    assert cells(worse)[:3] == ["more", "3.500", "+0.400"] and cells(worse)[4:] == ["9", "0.000"]
    low, high = (float(x) for x in cells(worse)[3].strip("[]").split(", "))
    assert 0.3 <= low < 0.4 < high <= 0.6
    assert cells(fewer)[:3] == ["two", "2.200", "-0.400"] and cells(fewer)[4] == "6"


def test_scores_by_row_and_task():
    """Two tasks of unequal numbers of rows weigh the same; a row that only one of the two has is left out."""

    def scored(*tasks):
        return {str(i): SimpleNamespace(rows=[], by_id=dict(enumerate(one))) for i, one in enumerate(tasks)}

    found = {"none": scored([0, 0, 0, 0], [1, 1]), "some": scored([1, 0, 1, 0, 1], [1, 0])}
    head, _, base, some = paired.lines(found, "none")
    assert "mean" in head and cells(base)[:2] == ["none", "50.0"]
    assert cells(some)[:3] == ["some", "50.0", "+0.0"] and cells(some)[4] == "6"


def test_cells_that_were_begun_and_have_no_rows_yet(capsys):
    def scored(*tasks):
        return {str(i): SimpleNamespace(rows=[], by_id=one) for i, one in enumerate(tasks)}

    found = {"none": scored({0: 0, 1: 1}, {}), "some": scored({0: 1}, {0: 1}), "later": scored({7: 1})}
    _, _, base, some = paired.lines(found, "none")
    assert cells(base)[:2] == ["none", "50.0"] and cells(some)[:3] == ["some", "100.0", "+100.0"]
    assert "later has no rows that none has" in capsys.readouterr().err
    less = {"none": text(0) | {"other": text(0)["nll"]}, "some": text(0.3)}
    assert cells(paired.lines(less, "none")[-1])[:3] == ["some", "3.500", "+0.400"]


def test_rows_are_read_from_the_disk(capsys):
    """A cell of task=ppl that lies in the tests, one segment of 128 tokens; its stretches are those of its row."""
    words = ["table=ppl", "base=tova", "where=[task.length=128,task.segments=1]", f"results_dir={OLD}"]
    paired.main(words)
    head, _, line = capsys.readouterr().out.strip().splitlines()
    assert "nll" in head and cells(line)[0] == "tova" and 0 < float(cells(line)[1]) < 6


def test_each_budget_has_a_table_with_the_full_cache_in_it():
    full, some, less = text(0), text(0.3), text(0.6)
    given = SimpleNamespace(base="full", model="m", by="")
    small, large = paired.tables({None: {"full": full}, 0.1: {"h2o": less}, 0.5: {"h2o": some}}, given)
    for told, head, apart in ((small, "budget 0.1", "+0.800"), (large, "budget 0.5", "+0.400")):
        lines = told.splitlines()
        assert lines[0] == head and cells(lines[-2])[:2] == ["full", "3.100"] and cells(lines[-1])[2] == apart
    (alone,) = paired.tables({None: {"full": full}, 0.5: {"h2o": some}}, given)
    assert not alone.startswith("budget")
    with pytest.raises(InputError, match="no rows of base='h2o'"):
        paired.tables({0.1: {"h2o": less}, 0.5: {"cam": some}}, SimpleNamespace(base="h2o", model="m", by=""))


def test_some_columns_of_a_table(capsys):
    where = f"where=[task.length=128,task.segments=1] results_dir={OLD}"
    paired.main(["table=ppl", "base=tova", "tasks=[KL]", *where.split()])
    assert "tova" in capsys.readouterr().out
    with pytest.raises(InputError, match="no 'kl' among the tasks of table=ppl"):
        paired.main(["table=ppl", "base=tova", "tasks=[kl]", *where.split()])


def test_a_base_without_rows(tmp_path):
    with pytest.raises(InputError, match="no rows of base='no merge' for model=tiny"):
        paired.main([f"results_dir={tmp_path}"])


def of_sets(**sets):
    return {s: SimpleNamespace(rows=[], task=f"longbench_{s}", by_id=dict(enumerate(x))) for s, x in sets.items()}


def test_a_column_for_each_category(capsys):
    """Sets of a category weigh the same, so do all sets in the last column; the best there comes first, of those that
    have all rows."""
    found = {
        "worse": of_sets(qasper=[0, 0], trec=[0, 0], triviaqa=[0, 1, 0, 1], lcc=[1, 0]),
        "full": of_sets(qasper=[0.5, 0.25], trec=[1, 1], triviaqa=[0, 1, 0, 1], lcc=[0, 0], qmsum=[])
        | {"nll": text(0)["nll"]},
        "fewer": of_sets(qasper=[0.75, 0.5], trec=[1, 1], triviaqa=[1, 1]),
        "better": of_sets(qasper=[0.75, 0.5], trec=[1, 1], triviaqa=[0, 1, 0, 1], lcc=[0, 0]),
        "none": {},
    }
    for result in found["full"].values():
        result.task = getattr(result, "task", "ppl")
    head, _, full, better, worse, fewer = paired.by_category(found, "full")
    assert cells(head) == ["method", "single-document QA", "few-shot", "code", "all"]
    assert cells(full) == ["full", "37.5, 2 rows", "75.0, 6 rows", "0.0, 2 rows", "46.9, 10 rows"]
    assert cells(better)[:2] == ["better", "+25.0"] and cells(better)[4].startswith("+6.2 [")
    assert cells(worse)[0] == "worse" and cells(worse)[2] == "-50.0" and cells(worse)[4].startswith("-21.9 [")
    assert cells(fewer)[:2] == ["fewer", "+25.0"] and cells(fewer)[3] == "" and cells(fewer)[2].endswith(", 4 rows")
    assert cells(fewer)[4].startswith("+25.0 [") and cells(fewer)[4].endswith(", 6 rows")
    assert "none has no rows that full has, left out" in capsys.readouterr().err


def test_categories_of_single_sets_of_longbench_e_and_of_what_has_none():
    assert [paired.category(f"longbench_{one}") for one in ("lcc", "e_lcc", "nll")] == ["code", "code", None]
    assert paired.category("mini_single") is None
    (head, *_) = paired.by_category({"none": of_sets(qasper=[1, 0], e_hotpotqa=[1, 0])}, "none")
    assert cells(head) == ["method", "single-document QA", "multi-document QA", "all"]
    with pytest.raises(InputError, match="by=category: none has no rows of LongBench's sets"):
        paired.by_category({"none": {"nll": SimpleNamespace(rows=[], task="ppl", by_id={0: 1})}}, "none")
    with pytest.raises(InputError, match="by=task: no such columns"):
        paired.main(["by=task"])
