"""docs/notebook.ipynb runs from its folder, and gives what it shows."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"


def outputs(cells):
    """What the code cells of a notebook print and show, in the notebook's own form; run in the current folder."""
    space, found = {}, []
    for cell in cells:
        if cell["cell_type"] == "code":
            found.append(run("".join(cell["source"]), space))
    return found


def run(code, space):
    tree, heard, last = ast.parse(code), io.StringIO(), None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(heard):
        exec(compile(tree, "cell", "exec"), space)
        value = None if last is None or said(last) else eval(compile(last, "cell", "eval"), space)
        if last is not None and said(last):
            eval(compile(last, "cell", "eval"), space)
    text = heard.getvalue()
    told = [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}] if text else []
    return told + ([] if value is None else [shown(value)])


def said(last):
    """Whether the last line of a cell prints, and shows nothing."""
    return isinstance(last.body, ast.Call) and ast.unparse(last.body.func) == "print"


def shown(value):
    page = value._repr_html_() if hasattr(value, "_repr_html_") else None
    data = {"text/plain": [repr(value)]} if page is None else {"text/html": [page], "text/plain": ["<shown as HTML>"]}
    return {"data": data, "execution_count": None, "metadata": {}, "output_type": "execute_result"}


def test_the_notebook_gives_what_it_shows(monkeypatch):
    cells = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(DOCS)
    kept = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert any("text/html" in out.get("data", {}) for outs in kept for out in outs)
    assert [list(map(told, outs)) for outs in outputs(cells)] == [list(map(told, outs)) for outs in kept]


def told(out):
    """What an output says; the shade of a word may hang on the last bit of a sum, and is left out."""
    data = out.get("data", {})
    return out.get("text"), data.get("text/plain"), re.sub("<[^>]*>", "", "".join(data.get("text/html", [])))
