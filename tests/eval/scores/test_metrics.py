"""The metrics one by one: values by hand, the package `rouge`, and that installed packages change nothing."""

import importlib.metadata
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.scores import fixed, official, rouge_official
from eval.scores.text_words import cut, words_en, words_zh

ROOT = Path(__file__).resolve().parents[3]


def test_words_are_cleaned_in_the_official_order():
    assert words_en("The U.S.'s  A-list, an apple!") == ["uss", "alist", "apple"]
    assert words_zh("北京，ABC。 ") == ["北京", "abc"]
    assert "".join(cut("今天 weather，不错。")) == "今天 weather，不错。"


def test_f1_by_hand():
    assert official.qa_f1("the red red fox", "red fox runs") == pytest.approx(2 / 3)
    assert official.qa_f1("a cat", "dog") == 0.0
    assert official.qa_f1("", "dog") == 0.0
    assert official.qa_f1_zh("北京", "北京。") == 1.0


def test_numbers_by_hand():
    assert official.count("there are 5, or 5, or 7", "5") == pytest.approx(2 / 3)
    assert official.count("none", "5") == 0.0
    assert official.retrieval("Paragraph 12, not 1", "Paragraph 12") == 0.5
    assert official.retrieval_zh("段落3", "段落3") == 1.0
    with pytest.raises(InputError, match="names no paragraph"):
        official.retrieval("1", "Absatz 1")


def test_classification_keeps_the_removal_fault_and_fixed_does_not():
    classes = ["a", "ab", "abc", "z"]
    assert official.classification("abc", "abc", classes) == 0.5  # "ab" escapes the removal
    assert fixed.classification("abc", "abc", classes) == 1.0
    for metric in (official.classification, fixed.classification):
        assert metric("abc or z", "z", ["abc", "z"]) == 0.5
        assert metric("q", "z", classes) == 0.0
        with pytest.raises(InputError, match="all_classes"):
            metric("q", "z", None)


def test_code_similarity():
    prediction = "\n# comment\n```\nreturn x + 1\nmore"
    assert official.code_line(prediction) == "return x + 1"
    assert official.code_similarity(prediction, "return x + 2") == 0.92
    assert fixed.code_similarity(prediction, "return x + 2") == pytest.approx(11 / 12)
    assert official.code_similarity("# only", "x") == 0.0


def test_fixed_code_similarity_has_no_junk_heuristic():
    line = "ab" * 110
    assert official.code_similarity("b" + line, line + "c") < 0.1
    assert fixed.code_similarity("b" + line, line + "c") > 0.9


def test_first_line():
    assert official.first_line("\n\n one\ntwo") == " one"
    assert official.first_line(" \none") == " "
    assert fixed.first_line(" \none \ntwo") == "one"


def test_fixed_rouge_is_rouge_score():
    pytest.importorskip("rouge_score")
    assert fixed.rouge_l("the cat sat", "The cat ran") == pytest.approx(2 / 3)
    assert fixed.rouge_l("", "x") == 0.0
    assert fixed.rouge_l_zh("北京 天气", "北京，天气") == 1.0
    words = " ".join(f"w{i}" for i in range(1200))
    assert fixed.rouge_l(words, words) == 1.0
    assert official.rouge_l(" ".join(f"w{i}" for i in range(1200)), words) == 0.0


def _package():
    if importlib.metadata.version("rouge") != "1.0.1":
        pytest.skip("another rouge than 1.0.1")
    from rouge import Rouge

    def score(prediction: str, answer: str) -> float:
        try:
            return Rouge(metrics=["rouge-l"]).get_scores([prediction], [answer])[0]["rouge-l"]["f"]
        except (ValueError, RecursionError):
            return 0.0

    return score


def test_official_rouge_equals_the_package_on_random_texts():
    package, draw = _package(), random.Random(0)
    alphabet = ["a", "b", "c", "d", "e", ".", "..", " ", "\n"]
    for _ in range(400):
        pair = [" ".join(draw.choices(alphabet, k=draw.randrange(0, 40))) for _ in range(2)]
        assert official.rouge_l(*pair) == package(*pair), pair


def test_official_rouge_equals_the_package_on_summaries(shared):
    package, seen = _package(), 0
    for path in sorted((shared / "data/longbench/preds").glob("*/*.jsonl")):
        if path.stem not in ("gov_report", "qmsum", "multi_news", "samsum", "vcsum", "dureader"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines()[::40]:
            row = json.loads(line)
            pair = row["pred"], row["answers"][0]
            if path.stem in ("vcsum", "dureader"):
                pair = tuple(" ".join(cut(text)) for text in pair)
            assert rouge_official.rouge_l(*pair) == package(*pair)
            seen += 1
    assert seen == 90


OFFICIAL_DEPTH = """
from rouge import Rouge
def rouge_score(p, g, **kw):
    try:
        return Rouge().get_scores([p], [g], avg=True)["rouge-l"]["f"]
    except Exception:
        return 0.0
def rouge_zh_score(p, g, **kw):
    return rouge_score(p, g)
def scorer(metric, p, g):
    return metric(p, g, all_classes=None)
if __name__ == "__main__":
    for metric in (rouge_score, rouge_zh_score):
        n = 950
        while scorer(metric, " ".join([f"a{i}" for i in range(n)]), "a0"):  # no frame more than eval.py has
            n += 1
        print(n)
"""


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="how frames are counted differs between versions")
def test_the_trace_dies_where_the_package_dies_under_the_official_script(tmp_path):
    _package()
    (tmp_path / "official.py").write_text(OFFICIAL_DEPTH)
    out = subprocess.run([sys.executable, "official.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    steps, steps_zh = map(int, out.stdout.split())  # a hypothesis of n words takes n steps to its first word
    assert (steps - 1, steps_zh - 1) == (rouge_official.MAX_STEPS, rouge_official.MAX_STEPS_ZH)
    for limit in (rouge_official.MAX_STEPS, rouge_official.MAX_STEPS_ZH):
        assert rouge_official.rouge_l(" ".join(f"a{i}" for i in range(limit)), "a0", limit) > 0
        assert rouge_official.rouge_l(" ".join(f"a{i}" for i in range(limit + 1)), "a0", limit) == 0


INTRUDERS = {
    # what fuzzywuzzy takes from python-Levenshtein when it is importable
    "Levenshtein.py": "def ratio(a, b): return 0.123\n"
    "def distance(a, b): return 1\nopcodes = editops = matching_blocks = distance\n",
    # what rouge_chinese and others install under the same name
    "rouge.py": "class Rouge:\n    def get_scores(self, *a, **k): return {'rouge-l': {'f': 0.123}}\n",
}

PROBE = """
import json, sys
from fuzzywuzzy import fuzz
import jieba, rouge
jieba.setLogLevel(60)
jieba.add_word("天气不错", 10**9)
from eval.scores import official as m
print(json.dumps([fuzz.ratio("return x + 1", "return x + 2") / 100, m.code_similarity("return x + 1", "return x + 2"),
    m.rouge_l("the cat sat", "the cat ran"), m.rouge_l_zh("天气不错", "天气 很好"), m.qa_f1_zh("天气不错", "天气")]))
"""


def _probe(path: Path) -> list[float]:
    env = {"PYTHONPATH": f"{path}:{ROOT}", "PATH": "/usr/bin:/bin"}
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", PROBE], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_installed_packages_change_no_official_score(tmp_path):
    plain = _probe(tmp_path)
    for name, text in INTRUDERS.items():
        (tmp_path / name).write_text(text)
    fuzz_alone, *scores = _probe(tmp_path)
    assert fuzz_alone == 0.12, "the stand-in must be what fuzzywuzzy picks up, or this proves nothing"
    assert scores == plain[1:]
    assert scores[0] == 0.92
    assert scores[3] == pytest.approx(2 / 3), "a word added to the global jieba must not reach the metrics"
