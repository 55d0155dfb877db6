"""Places where nothing can be read or written: each is refused in two lines, and nothing is left behind."""

import errno
import json
import os
import socket
from pathlib import Path

import pytest
from tries import LONG, everything, two_lines, with_the_rest

import eval_long_bench
import run_pred
from eval.cli import main
from eval.exits import report

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROW = {"id": "1", "pred": "x", "answers": ["x"], "all_classes": None, "length": 3}
TREC = "task=longbench_trec"


def place(kind: str, at: Path) -> str:
    """A place of that kind below `at`, as it is typed."""
    spot = at / "spot"
    if kind == "long name":
        return str(at / LONG)
    if kind == "long path":
        return str(at / "/".join(["n" * 200] * 25))
    if kind == "loop":
        spot.symlink_to(at / "spot")
    elif kind == "below a loop":
        spot.symlink_to(at / "spot")
        spot = spot / "more"
    elif kind == "file":
        spot.write_text("no folder")
    elif kind == "below a file":
        spot.write_text("no folder")
        spot = spot / "more"
    elif kind == "folder":
        spot.mkdir()
    elif kind == "not UTF-8":
        return str(at / "a\udcffb")
    elif kind == "NUL":
        return f"{at}/a\0b"
    elif kind == "newline":
        return f"{at}/a\nb"
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(spot))
    elif kind == "dangling":
        spot.symlink_to(at / "nowhere" / "deep")
    elif kind == "missing":
        spot = at / "no" / "such"
    return str(spot)


FOLDER = ["long name", "long path", "loop", "below a loop", "file", "below a file", "not UTF-8", "NUL", "newline"]
READ = [*FOLDER, "missing", "dangling", "socket", "folder"]
FILE = ["long name", "long path", "below a loop", "below a file", "not UTF-8", "NUL", "newline", "folder", "missing"]
RUNS = {
    "results_dir={}": [*FOLDER, "dangling", "socket"],
    "model=path model.path={}": READ,
    f"{TREC} task.data_dir={{}}": READ,
    f"{TREC} task.prompts_dir={{}}": READ,
    "task=needle task.haystack={}": [kind for kind in READ if kind != "file"],
    "task=ppl task.text={}": [kind for kind in READ if kind != "file"],
    "method=locret method.heads={}": [kind for kind in READ if kind != "file"],
}
SCORES = {
    "results_dir={}": READ,
    "preds={}": READ,
    "json={}": FILE,
    "table=mini out={}": FILE,
    "report={}": FILE,
    "plots={}": [kind for kind in FOLDER if "loop" not in kind],
}


def pairs(of: dict) -> list:
    return [pytest.param(words, kind, id=f"{words.split()[-1][:-3]}-{kind}") for words in of for kind in of[words]]


@pytest.fixture
def here(tmp_path, monkeypatch, shared):
    """(the folder for places, the folder to be in); a LongBench set lies where the tasks look for it."""
    for name in ("at", "here", "data"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("D2O_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "longbench").mkdir()
    (tmp_path / "data/longbench/data").symlink_to(shared / "data/longbench/subset")
    (tmp_path / "data/longbench/prompts").symlink_to(shared / "data/longbench/protocol")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "at", tmp_path / "here"


@pytest.mark.parametrize(("words", "kind"), pairs(RUNS))
def test_a_run_is_refused(words, kind, here, capsys):
    spot = place(kind, here[0])
    before = everything(here[0].parent)
    typed = [word.format(f"'{spot}'" if "\n" in spot or "\0" in spot else spot) for word in words.split()]
    two_lines(main(with_the_rest(typed), run_pred.run_cell, CONFIGS), *capsys.readouterr())
    assert everything(here[0].parent) == before


def a_cell(results: Path) -> None:
    folder = results / "tiny" / "h2o-default-b0.2" / "longbench_trec"
    folder.mkdir(parents=True)
    names = {"model": "tiny", "method": "h2o", "variant": "default", "budget": 0.2, "task": "longbench_trec", "seed": 0}
    protocol = {"metric": "qa_f1", "first_line": True, "over_answers": "max", "buckets": []}
    config = {"cell": names, "protocol": protocol, "protocol_hash": "p" * 8}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "predictions.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / "status.json").write_text(json.dumps({"state": "done", "total": 1}))


def score(words: list[str]) -> int:
    try:
        eval_long_bench.main(words)
    except Exception as error:
        return report(error)
    return 0


@pytest.mark.parametrize(("words", "kind"), pairs(SCORES))
def test_a_score_is_refused(words, kind, here, capsys):
    if not words.startswith("results_dir"):
        a_cell(here[1] / "results")
    spot = place(kind, here[0])
    if words.startswith("report"):
        spot += ".html"
        if kind == "folder":
            Path(spot).mkdir()
    before = everything(here[0].parent)
    code = score([word.format(f"'{spot}'" if "\n" in spot or "\0" in spot else spot) for word in words.split()])
    out, err = capsys.readouterr()
    two_lines(code, "", err)
    assert everything(here[0].parent) == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_disk_that_cannot_be_written(number, call, here, capsys, monkeypatch):
    """Tests may run as root, whom no bits of a mode bind: the system's answer is given in its place."""
    real = getattr(os, call)

    def refuse(path, *rest, **more):
        writes = call == "mkdir" or rest and rest[0] & os.O_CREAT
        if "/at/" in os.fspath(path) and writes:
            raise OSError(number, os.strerror(number), os.fspath(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, call, refuse)
    code = main(with_the_rest([f"results_dir={here[0]}/r"]), run_pred.run_cell, CONFIGS)
    assert f"{here[0]}/r" in two_lines(code, *capsys.readouterr())[0]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_whole_cell_on_a_disk_that_cannot_be_written_is_read(number, here, capsys, monkeypatch):
    words = with_the_rest(["limit=2", f"results_dir={here[0]}/r"])
    assert main(words, run_pred.run_cell, CONFIGS) == 0
    (file,) = here[0].rglob("predictions.jsonl")
    with file.open("a") as rows:
        rows.write('{"id": "to')  # what a killed run leaves
    said, held = capsys.readouterr().out, {place: Path(place).read_bytes() for place in everything(here[0])
                                           if Path(place).is_file()}  # fmt: skip
    refused, real = [], {name: getattr(os, name) for name in ("open", "replace", "utime", "mkdir")}

    def refuse(name):
        def call(path, *rest, **more):
            writes = name != "open" or (rest and rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if isinstance(path, str | os.PathLike) and "/at/" in os.fspath(path) and writes:
                refused.append(name)
                raise OSError(number, os.strerror(number), os.fspath(path))
            return real[name](path, *rest, **more)

        return call

    for name in real:
        monkeypatch.setattr(os, name, refuse(name))
    monkeypatch.setattr(Path, "write_text", lambda self, *_, **__: pytest.fail(f"{self} was written"))
    monkeypatch.setattr(Path, "mkdir", lambda self, *_, **__: None)
    assert main(words, run_pred.run_cell, CONFIGS) == 0
    out, err = capsys.readouterr()
    assert "2 (0 new)" in out and out.split()[:4] == said.split()[:4] and refused == ["open"]
    assert err.startswith("note: ") and "cannot be written" in err and err.count("\n") == 1
    assert main([*words, "limit=3"], run_pred.run_cell, CONFIGS) == 2
    assert "1 of 3 rows are missing" in two_lines(2, *capsys.readouterr())[0]
    assert {place: Path(place).read_bytes() for place in held} == held
