"""eval_long_bench.py table=NAME as a user calls it: what it writes, and what it refuses."""

import pytest

from d2o.errors import InputError
from tests.made_tables import made


def test_the_command(tmp_path, capsys):
    import eval_long_bench

    made(tmp_path / "r", "h2o", 0.2, "mini_single", "10", {"task.length": 512})
    eval_long_bench.main(["table=mini", f"results_dir={tmp_path / 'r'}", "format=csv", f"out={tmp_path / 't.csv'}"])
    assert "mini,tiny,h2o,0.2,single,,,50.0" in (tmp_path / "t.csv").read_text()
    eval_long_bench.main(["table=mini", f"results_dir={tmp_path / 'r'}"])
    assert "50.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, what",
    [
        (["table=minni"], "unknown table 'minni'"),
        (["table=mini", "format=pdf"], "format=pdf is unknown"),
        (["table=mini", "preds=x"], "does not go with preds=x"),
        (["table=mini", "json=x.json"], "does not go with json=x.json"),
        (["format=csv"], "format=csv is of a table"),
        (["out=x.csv"], "out= is of a table"),
        (["table=mini", "where=[seed]"], "'seed' in where="),
        (["table=mini", "out=/nowhere/x"], "cannot write out="),
    ],
)
def test_bad_input_of_the_command(words, what):
    import eval_long_bench

    with pytest.raises(InputError, match=what) as caught:
        eval_long_bench.main(words)
    assert caught.value.hint
