"""Rows on the disk: whole lines, one writer, nothing lost and nothing twice, whatever ends a run."""

import errno
import json
import os
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.cells import cell as cells
from eval.cells import files, rows

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"identity": {"budget": 0.2}, "protocol_hash": "a", "model_fingerprint": "m", "versions": {}, "device": "cpu"}


def row(number, **more):
    return {"id": str(number), "pred": f"answer {number}", **more}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


# ---- the file


@pytest.mark.parametrize("tail", [b'{"id": "2", "pr', b'{"id": "2"}', b"\0\0\0\0", b'{"id": "2", "pr\n', b"\0\0\n"])
def test_a_torn_last_line_is_cut_and_nothing_else(tmp_path, tail):
    path = tmp_path / "predictions.jsonl"
    whole = rows.encode_row(row(0)) + rows.encode_row(row(1))
    path.write_bytes(whole + tail)
    file = rows.RowFile(path)
    assert list(file.rows) == ["0", "1"] and path.read_bytes() == whole
    file.append(row(2))
    file.close()
    assert [r["id"] for r in read(path)] == ["0", "1", "2"]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(rows.encode_row(row(0)) + b"{torn\n" + rows.encode_row(row(1)))
    with pytest.raises(InputError, match="line 2"):
        rows.RowFile(path)
    path.write_bytes(rows.encode_row(row(0)) * 2)
    with pytest.raises(InputError, match="line 2 repeats id '0'"):
        rows.RowFile(path)


def streamed(path, *about):
    return [one["id"] for _, one in rows.stream_rows(path, rows.SCORING, *about)]


def test_whoever_reads_sees_the_same_rows(tmp_path):
    """One rule for torn lines and one for blank ones: a run that resumes and the scorer have the same rows."""
    path, cut = tmp_path / "predictions.jsonl", []
    whole = rows.encode_row(row(0)) + b"\n" + rows.encode_row(row(1))
    for tail in (b'{"id": "2", "pr', b"  ", b"5\n", b"[]\n", b'{"id": "2"}'):
        path.write_bytes(whole + tail)
        assert streamed(path, cut.append, {}) == list(rows.read_rows(path)[0]) == ["0", "1"]
        assert cut.pop() == rows.read_rows(path)[1] == len(whole) and cut == []
    path.write_bytes(whole + b"\n \n")  # blank lines that end are no tear, and nothing is said of them
    assert streamed(path, cut.append, {}) == list(rows.read_rows(path)[0]) == ["0", "1"] and cut == []
    path.write_bytes(whole + b'{"pred": "no id"}\n')  # a whole object is not what a killed run leaves
    with pytest.raises(InputError, match="line 4 is no row"):
        rows.read_rows(path)
    path.write_bytes(whole + b'{"id": "2"}')
    assert streamed(path) == ["0", "1", "2"], "a file of someone else's needs no newline at its end"


def test_a_row_is_read_when_it_is_asked_for(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(rows.encode_row(row(0)) + b"{torn\n" + rows.encode_row(row(1)))
    reader = rows.stream_rows(path, rows.SCORING)
    assert next(reader) == (1, row(0))
    with pytest.raises(InputError, match="predictions.jsonl, line 2: not a whole line of JSON"):
        next(reader)


def test_an_id_is_held_once_in_all_files_of_a_cell(tmp_path):
    one, two, held = tmp_path / "predictions.1-of-2.jsonl", tmp_path / "predictions.2-of-2.jsonl", {}
    one.write_bytes(rows.encode_row(row(0)))
    two.write_bytes(rows.encode_row(row(1)) + rows.encode_row(row(0)))
    assert streamed(one, None, held) == ["0"] and held == {"0": one}
    with pytest.raises(InputError, match=f"{tmp_path}: row '0' is in {one.name} and in {two.name}"):
        streamed(two, None, held)
    two.write_bytes(rows.encode_row(row(1)) * 2)
    with pytest.raises(InputError, match="two rows have the id '1'"):
        streamed(two, None, {})
    two.write_text('{"id": ["1"], "pred": "a"}\n')
    with pytest.raises(InputError, match=r"line 1: id is \['1'\]"):
        streamed(two, None, {})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "f"
    files.write_whole(path, "before")
    with pytest.raises(KeyboardInterrupt), files.beside(path) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        files.write_whole(path, b"after", ".1")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["a\nb\r\nc", "你好 ünï", "x\u2028y\u2029z\x85", "\ud83d half a pair", '"\\'])
def test_any_text_stays_on_one_line(tmp_path, text):
    file = rows.RowFile(tmp_path / "p.jsonl")
    file.append(row(0, text=text))
    file.close()
    written = (tmp_path / "p.jsonl").read_text(encoding="utf-8")
    assert len(written.splitlines()) == 1 and json.loads(written)["text"] == text


def test_one_writer_at_a_time(tmp_path):
    first = rows.RowFile(tmp_path / "p.jsonl")
    with pytest.raises(rows.Busy):
        rows.RowFile(tmp_path / "p.jsonl")
    first.close()
    rows.RowFile(tmp_path / "p.jsonl").close()


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    file = rows.RowFile(tmp_path / "p.jsonl")
    file.append(row(0))
    real, left = os.write, [5]

    def write(fd, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part, left[0] = data[: left[0]], 0
        return real(fd, part)

    monkeypatch.setattr(rows.os, "write", write)
    with pytest.raises(OSError):
        file.append(row(1))
    assert read(tmp_path / "p.jsonl") == [row(0)] and list(file.rows) == ["0"]
    monkeypatch.undo()
    file.append(row(1))
    file.close()
    assert read(tmp_path / "p.jsonl") == [row(0), row(1)]


# ---- the cell


def test_a_cell_is_resumed_only_with_what_began_it(tmp_path):
    with cells.Cell.open(tmp_path / "c", CONFIG, ["0", "1"]) as cell:
        cell.write(row(0))
    for key, value in {"protocol_hash": "b", "model_fingerprint": "n", "identity": {"budget": 0.3}}.items():
        with pytest.raises(InputError, match="was begun with") as caught:
            cells.Cell.open(tmp_path / "c", {**CONFIG, key: value}, ["0", "1"])
        assert "results_dir=" in caught.value.hint
    with cells.Cell.open(tmp_path / "c", {**CONFIG, "device": "cuda"}, ["0", "1"]) as cell:
        assert (cell.done, cell.total) == (1, 2) and "cuda" in cell.notes[0]
    assert json.loads((tmp_path / "c" / "config.json").read_text())["device"] == "cpu"


@pytest.mark.parametrize("dtype, noted", [("float32", False), ("bfloat16", True), ("float16", True), (None, True)])
def test_a_resume_at_another_batch_size_says_so_in_half_precision(tmp_path, dtype, noted):
    begun = CONFIG | {"config": {"batch_size": 6}, "dtype": dtype}
    with cells.Cell.open(tmp_path, begun, ["0", "1"]) as cell:
        cell.write(row(0))
    with cells.Cell.open(tmp_path, begun, ["0", "1"]) as cell:
        assert cell.notes == []
    with cells.Cell.open(tmp_path, begun | {"config": {"batch_size": 1}}, ["0", "1"]) as cell:
        assert len(cell.notes) == noted and all("batch_size=6, and this run has batch_size=1" in n for n in cell.notes)


def test_rows_of_unknown_origin_are_not_added_to(tmp_path):
    (tmp_path / "predictions.jsonl").write_bytes(rows.encode_row(row(0)))
    with pytest.raises(InputError, match="no config.json"):
        cells.Cell.open(tmp_path, CONFIG, ["0"])


def test_a_results_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        cells.Cell.open(tmp_path / "file" / "cell", CONFIG, ["0"])


def test_the_status_follows_the_run(tmp_path):
    def status():
        return json.loads((tmp_path / "status.json").read_text())

    with pytest.raises(RuntimeError), cells.Cell.open(tmp_path, CONFIG, ["0", "1"]) as cell:
        cell.write(row(0))
        cell.status("running")
        assert (status()["state"], status()["done"], status()["total"]) == ("running", 1, 2)
        raise RuntimeError("layer 3\nand more")
    assert (status()["state"], status()["error"]) == ("failed", "RuntimeError: layer 3")
    with cells.Cell.open(tmp_path, CONFIG, ["0", "1"]) as cell:
        cell.write(row(1))
    assert (status()["state"], status()["done"], status()["error"]) == ("done", 2, None)


def test_a_job_put_back_into_the_queue_says_so(tmp_path):
    """submitit leaves a job that it has requeued with SystemExit."""
    with pytest.raises(SystemExit), cells.Cell.open(tmp_path, CONFIG, ["0", "1"]) as cell:
        cell.write(row(0))
        raise SystemExit(-1)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["done"], status["error"]) == ("queued", 1, None)
