"""The command line of the scripts: one style, help, errors of two lines, quiet ends."""

import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.config import cards
from scripts import command
from scripts.train import config

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "command")
KEYS = {"out": "here", "rounds": 3, "share": 0.5, "graph": False, "cap": float, "sizes": (1, 2), "data_dir": str}


@pytest.fixture(autouse=True)
def _as_before():
    """A script changes what SIGTERM does, and where modules are looked for."""
    handler, places = signal.getsignal(signal.SIGTERM), list(sys.path)
    yield
    signal.signal(signal.SIGTERM, handler)
    sys.path[:] = places


def start(name: str, words: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit code, output and errors of scripts/<name>.py, run here as its own command."""
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    return left.value.code, *capsys.readouterr()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_an_unknown_word(name, monkeypatch, capsys):
    code, out, err = start(name, ["--help"], monkeypatch, capsys)
    assert (code, err) == (0, "") and f"scripts/{name}.py" in out
    for word in ("nonsense=1", "--nonsense"):
        code, out, err = start(name, [word], monkeypatch, capsys)
        error, hint = err.splitlines()
        assert code == 2 and error.startswith("error: ") and "nonsense" in error and hint.startswith("hint: "), err


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_interrupted_script_ends_quietly(name, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "read", stop)
    monkeypatch.setattr(config, "composed", stop)
    monkeypatch.setattr(cards, "cards", stop)
    assert start(name, ["one"], monkeypatch, capsys) == (130, "", "error: interrupted\n")


def test_a_command_within_one_that_fails_is_not_said_twice(monkeypatch, capsys):
    code, out, err = start("locret_memory", ["hidden=3", "lengths=8"], monkeypatch, capsys)
    assert code != 0 and out == "" and "Traceback" not in err  # the other process has said it on the real stderr


def test_every_key_is_in_the_help():
    for name in SCRIPTS:
        made = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))
        said = made["__doc__"]
        missing = [key for key in made.get("KEYS", ()) if f"{key}=" not in said and f"--{key}" not in said]
        assert not missing, f"{name}: {missing}"


def test_sigterm_ends_a_script_as_ctrl_c_does(capsys):
    def work(words):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert command.answer(work, "", []) == 143
    assert capsys.readouterr().err == "error: stopped by SIGTERM\n"


def test_a_command_within_a_command_ends_with_it(tmp_path):
    """Told to end, in good order: it says so itself, where it would be killed silently."""
    code = f"""if True:
        import os, signal, sys
        from pathlib import Path
        def stop(*_): Path({str(tmp_path / "told")!r}).touch(); sys.exit(3)
        signal.signal(signal.SIGTERM, stop)
        os.kill(os.getppid(), signal.SIGTERM)
        while True: signal.pause()"""
    assert command.answer(lambda words: command.call(["-c", code]), "", []) == 143
    assert (tmp_path / "told").exists()
    assert command.call(["-c", "raise SystemExit(7)"]) == 7


def test_three_ways_to_say_the_same():
    said = {"out": "a=b", "rounds": 5, "share": 0.1, "graph": True, "cap": 2.0, "sizes": (3, 4), "data_dir": "x"}
    ways = (
        "out=a=b rounds=5 share=.1 graph=true cap=2 sizes=3,4 data_dir=x",
        "--out=a=b --rounds=5 --share=.1 --graph --cap=2 --sizes=3,4 --data-dir=x",
        "--out a=b --rounds 5 --sizes 3 4 --share .1 --graph --cap 2 --data-dir x",
    )
    for words in ways:
        assert vars(command.read(words.split(), KEYS)) == said
    nothing = {"out": "here", "rounds": 3, "share": 0.5, "graph": False, "cap": None, "sizes": (1, 2), "data_dir": None}
    assert vars(command.read([], KEYS)) == nothing


def test_places_and_other_words():
    keys = {"source": None, "target": None, "dtype": str}
    given = command.read(["a/b=c", "--dtype", "float32", "d"], keys, places=("source", "target"))
    assert (given.source, given.target, given.dtype) == ("a/b=c", "d", "float32")
    given = command.read(["--rounds", "5", "method=h2o", "families"], KEYS, others=True)
    assert given.rounds == 5 and given.words == ["method=h2o", "families"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rounds=x"], "rounds=x is not a whole number"),
        (["--cap", "x"], "cap=x is not a number"),
        (["graph=yes"], "graph=yes is not true or false"),
        (["sizes=1,x"], "sizes=1,x is not whole numbers"),
        (["--rounds"], "cannot read 'rounds='"),
        (["--rounds", "--graph"], "cannot read 'rounds='"),
        (["out="], "cannot read 'out='"),
        (["one"], "cannot read 'one'"),
        (["-x"], "cannot read '-x'"),
    ],
)
def test_slips_of_the_hand(words, said):
    with pytest.raises(InputError, match=said) as caught:
        command.read(words, KEYS)
    assert caught.value.hint


def test_too_few_and_too_many_words():
    for words, said in (([], "source= is missing"), (["a", "b"], "cannot read 'b'")):
        with pytest.raises(InputError, match=said):
            command.read(words, {"source": None}, places=("source",))
