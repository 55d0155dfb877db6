"""scripts/plot.py: what it refuses."""

import pytest

from d2o.errors import InputError
from scripts.plot import main

REFUSED = {
    "kind=pie out=a.png": ("kind=pie is unknown", "budget_sheet"),
    "kind=ppl out=a.pdf": ("cannot write out=a.pdf", ".svg"),
    "kind=ppl out=none/a.png": ("cannot write out=none/a.png", "exists"),
    "kind=ppl what=survival out=a.png": ("kind=ppl has no what='survival'", "above full"),
    "kind=needle what=recall,survivors out=a.png": ("kind=needle has no what='recall,survivors'", "held or merged"),
    "kind=ppl what=recall,recall out=a.png": ("kind=ppl has no what='recall,recall'", "above full"),
    "kind=speed what=survival out=a.png": ("kind=speed has no what='survival'", "leave it out"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        main(words.split())
    what, hint = REFUSED[words]
    assert str(refused.value).startswith(what) and hint in refused.value.hint
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["kind=ppl", "kind=needle what=recall,survival"])
def test_a_folder_without_cells_draws_nothing(words, tmp_path):
    out = tmp_path / "a.png"
    with pytest.raises(InputError, match="no predictions under"):
        main([*words.split(), f"out={out}", f"results_dir={tmp_path}"])
    assert not out.exists()
