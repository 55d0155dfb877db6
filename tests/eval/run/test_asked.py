"""How a cell is asked: models by what they are, prompts shown and kept, batches that find their size, system turns."""

import json
import shutil
from pathlib import Path

import pytest

import run_pred
from eval.cells.identity import identity
from eval.cli import main
from eval.config.compose import compose_cell, configs
from eval.config.named_model import with_model
from eval.config.words import Words
from eval.run import batch

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
SHORT = ["task=mini_single", "task.length=256"]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %}[say]{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """The bundled model with a chat template."""
    place = tmp_path_factory.mktemp("chat") / "chatty"
    shutil.copytree(ROOT / "models/tiny", place)
    (place / "chat_template.jinja").write_text(TEMPLATE)
    return place


def call(words, capsys):
    """Exit code and what was printed to stdout and stderr."""
    return main(list(map(str, words)), run_pred.run_cell, CONFIGS, run_pred.size_cell), *capsys.readouterr()


def rows(results):
    (file,) = results.rglob("predictions.jsonl")
    return [json.loads(line) for line in file.open()]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny", ["model=tiny"]),
        ("meta-llama/Llama-2-7b", ["model=hub", "model.id=meta-llama/Llama-2-7b"]),
        (str(ROOT), ["model=path", f"model.path={ROOT}"]),
        ("./nowhere", ["model=path", "model.path=./nowhere"]),
        ("tinny", ["model=tinny"]),
    ],
)
def test_a_model_by_what_it_is(name, words):
    assert with_model(Words(["budget=.2", f"model={name}"]), CONFIGS).list == ["budget=.2", *words]


def test_prompts_are_shown_as_the_model_reads_them(chatty, capsys, tmp_path):
    asked = [f"model={chatty}", *SHORT, "task.chat=true", "model.system=Be brief.", f"results_dir={tmp_path / 'r'}"]
    code, out, _ = call([*asked, "show=2", "method=d2o,h2o", "-m"], capsys)
    assert code == 0 and out.count("=== mini_single-256-0-") == 2 and out.count("--- answers: ") == 2
    assert out.count("[system] Be brief.[user] ") == 2 and out.count("[say]") == 2
    code, out, _ = call([*asked, "show=1", "task.question=after"], capsys)
    assert out.count("[evicted here]\n") == 1 and out.split("[evicted here]")[1].startswith("\n\n? ")
    assert not (tmp_path / "r").exists()
    assert "1 to 1000" in call([*asked, "show=no"], capsys)[2]
    assert "beside the model" in call(["model=tiny", "task=needle", "show=1"], capsys)[2]
    assert "no chat template" in call(["model=path", f"model.path={ROOT}/models/tiny", *SHORT, "model.system=x",
                                       "show=1"], capsys)[2]  # fmt: skip


def test_rows_keep_their_prompts_and_the_size_of_their_batch(chatty, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST", 2)
    words = [f"model={chatty}", *SHORT, "task.chat=true", "task.max_new_tokens=2", "limit=3", "batch_size=auto"]
    code, _, err = call([*words, "log_prompts=true", "method=h2o", f"results_dir={tmp_path}"], capsys)
    assert code == 0, err
    found = rows(tmp_path)
    assert [row["batch_size"] for row in found] == [2, 2, 2] and max(row["new_tokens"] for row in found) <= 2
    assert all("[user] story:" in row["prompt"] and row["prompt"].endswith("[say]") for row in found)


@pytest.mark.parametrize(
    ("room", "fits", "most", "size"),
    [(None, 5, 64, 4), (None, 99, 64, 64), (9, 0, 64, 8), (1, 0, 64, 1), (99, 0, 3, 2)],
)
def test_the_largest_batch_that_fits(room, fits, most, size):
    class Trial:
        def rows_that_fit(self, prompt, new, share):
            assert (prompt, new) == (90, 10) and 0 < share < 1
            return room

        def fits(self, rows, *_):
            return rows <= fits

    assert batch.largest(Trial(), 100, 10, most) == size


def test_what_is_no_batch_is_refused(capsys):
    for words, said in (("batch_size=1.5", "no whole number"), ("batch_size=many", "no whole number")):
        assert said in call(["model=tiny", *SHORT, words], capsys)[2]


def test_settings_at_their_defaults_are_in_no_identity():
    with configs(CONFIGS):
        for words in (["task=mini_single"], ["task=longbench_qasper", "model=path", "model.path=x"]):
            cell = compose_cell(words, CONFIGS)
            assert not {"task.chat", "task.max_new_tokens", "model.system"} & set(identity(cell.cfg, cell.names))
        cell = compose_cell(["task=mini_single", "task.max_new_tokens=3"], CONFIGS)
        assert identity(cell.cfg, cell.names)["task.max_new_tokens"] == 3
        assert "task.max_new_tokens" in identity((old := compose_cell(["task=passkey"], CONFIGS)).cfg, old.names)
