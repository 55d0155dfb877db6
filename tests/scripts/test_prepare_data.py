"""The download path against a small local server that knows ranges, and can break off."""

import hashlib
import io
import json
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from d2o.errors import InputError
from eval.tasks.longbench.download import Source, fetch
from scripts import prepare_data

ROOT = Path(__file__).resolve().parents[2]
ROWS = b'{"a": 1}\n' * 200_000
ZIP_PATH = f"/datasets/zai-org/LongBench/resolve/{prepare_data.REVISION}/data.zip"


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


MEMBERS = {
    "data/trec.jsonl": ROWS,
    "data/trec_e.jsonl": b"{}\n",
    "data/README.md": b"no set",
    "data/unknown.jsonl": b"no set",
    "../evil.jsonl": b"outside",
    "/tmp/lcc.jsonl": b"absolute",
}
ZIP = archive(MEMBERS)


class Server:
    """`files`: path to content. `cut`: how many bytes each of the next answers sends before it hangs up.
    `ranges`: False answers a range with the whole file. `asked`: the Range header of every request."""

    def __init__(self) -> None:
        self.files, self.cut, self.ranges, self.busy, self.asked = {}, [], True, 0, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request) -> None:
        content, asked = self.files.get(request.path), request.headers.get("Range")
        self.asked.append(asked)
        if self.busy:
            self.busy -= 1
            return request.send_error(503)
        if content is None:
            return request.send_error(404)
        at = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if at and at >= len(content):
            return request.send_error(416)
        request.send_response(206 if at else 200)
        if at:
            request.send_header("Content-Range", f"bytes {at}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - at))
        request.end_headers()
        end = at + self.cut.pop(0) if self.cut else len(content)
        request.wfile.write(content[at:end])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def get(server, target: Path, content: bytes = ZIP) -> bool:
    return fetch(Source(f"{server.url}/f", pause_s=0), target, sha(content))


def test_fetch_then_nothing_to_do(server, tmp_path):
    server.files["/f"] = ZIP
    target = tmp_path / "deep" / "f"
    assert get(server, target) is True and target.read_bytes() == ZIP
    assert get(server, target) is False and server.asked == [None]
    assert [path.name for path in target.parent.iterdir()] == ["f"]


def test_a_broken_connection_is_resumed_within_the_call(server, tmp_path):
    server.files["/f"], server.cut = ZIP, [300_000, 500_000]
    assert get(server, tmp_path / "f")
    assert server.asked == [None, "bytes=300000-", "bytes=800000-"]
    assert (tmp_path / "f").read_bytes() == ZIP


def test_a_connection_that_keeps_breaking_is_resumed_by_the_next_call(server, tmp_path):
    server.files["/f"], server.cut = ZIP, [100_000] * 5
    with pytest.raises(InputError, match="broke off after 500000 bytes, 5 times") as caught:
        get(server, tmp_path / "f")
    assert "run the same command again" in caught.value.hint and not (tmp_path / "f").exists()
    assert get(server, tmp_path / "f") and server.asked[-1] == "bytes=500000-"
    assert (tmp_path / "f").read_bytes() == ZIP and not (tmp_path / "f.part").exists()


def test_a_killed_process_is_resumed_by_the_next(server, tmp_path):
    (tmp_path / "f.part").write_bytes(ZIP[:777_777])
    server.files["/f"] = ZIP
    assert get(server, tmp_path / "f") and server.asked == ["bytes=777777-"]
    (tmp_path / "f").rename(tmp_path / "f.part")  # killed after the last byte, before the renaming
    assert get(server, tmp_path / "f") and (tmp_path / "f").read_bytes() == ZIP


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"x" * 5000)
    server.files["/f"], server.ranges = ZIP, False
    assert get(server, tmp_path / "f") and (tmp_path / "f").read_bytes() == ZIP


def test_the_half_of_another_version_is_thrown_away(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"x" * 5000)
    server.files["/f"] = ZIP
    assert get(server, tmp_path / "f") and server.asked == ["bytes=5000-", None]
    assert (tmp_path / "f").read_bytes() == ZIP


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.files["/f"], server.busy = ZIP, 2
    assert get(server, tmp_path / "f") and len(server.asked) == 3


def test_a_wrong_checksum_keeps_nothing(server, tmp_path):
    server.files["/f"] = ZIP
    with pytest.raises(InputError, match=f"sha256 {sha(ZIP)}, expected {sha(b'other')}"):
        get(server, tmp_path / "f", b"other")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lies_there_is_checked(server, tmp_path):
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(InputError, match=f"sha256 {sha(b'mine')}"):
        get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"mine" and server.asked == []


def test_two_at_once(server, tmp_path):
    from eval.tasks.longbench.download import _locked

    server.files["/f"] = ZIP
    with _locked(tmp_path / "f.part"), pytest.raises(InputError, match="another process"):
        get(server, tmp_path / "f")


def test_not_found_and_no_address(server, tmp_path):
    with pytest.raises(InputError, match="answers 404"):
        get(server, tmp_path / "f")
    with pytest.raises(InputError, match="no address"):
        fetch(Source("nowhere/f"), tmp_path / "f", sha(ZIP))
    assert list(tmp_path.iterdir()) == []


def test_unpacking_takes_the_sets_and_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data.zip").write_bytes(ZIP)
    folder = tmp_path / "a" / "data"
    assert prepare_data.unpack(tmp_path / "a" / "data.zip", folder) == (2, 0)
    assert {path.name for path in folder.iterdir()} == {"trec.jsonl", "trec_e.jsonl"}
    assert (folder / "trec.jsonl").read_bytes() == ROWS
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"data.zip", "trec.jsonl", "trec_e.jsonl"}
    (folder / "trec.jsonl").write_bytes(ROWS.replace(b"1", b"2"))  # of the same size
    assert prepare_data.unpack(tmp_path / "a" / "data.zip", folder) == (1, 1)
    assert (folder / "trec.jsonl").read_bytes() == ROWS


def test_unpacking_what_is_no_archive_or_has_no_set(tmp_path):
    (tmp_path / "data.zip").write_bytes(ZIP[:-30])
    with pytest.raises(InputError, match="no whole zip"):
        prepare_data.unpack(tmp_path / "data.zip", tmp_path / "data")
    (tmp_path / "data.zip").write_bytes(archive({"data/README.md": b""}))
    with pytest.raises(InputError, match="no LongBench set"):
        prepare_data.unpack(tmp_path / "data.zip", tmp_path / "data")


def command(tmp_path: Path, endpoint: str, *words: str) -> subprocess.CompletedProcess:
    """The script as a user calls it, with HF_ENDPOINT."""
    env = {"HF_ENDPOINT": endpoint, "D2O_DATA": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    line = [sys.executable, str(ROOT / "scripts/prepare_data.py"), *words]
    return subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)


def prompt_files(server, shared: Path) -> str:
    for name in prepare_data.PROMPTS_SHA256:
        server.files[f"/prompts/{name}"] = (shared / "data/longbench/protocol" / name).read_bytes()
    return f"--prompts-url={server.url}/prompts"


def test_the_whole_command(server, tmp_path, shared):
    from eval.tasks.longbench.task import LongBench

    where = prompt_files(server, shared)
    server.files[ZIP_PATH] = archive({"data/trec.jsonl": (shared / "data/longbench/subset/trec.jsonl").read_bytes()})
    words = [where, f"--data-sha256={sha(server.files[ZIP_PATH])}"]
    done = command(tmp_path, server.url + "/", *words)
    assert done.returncode == 0, done.stderr
    assert "downloaded" in done.stdout and "1 files unpacked" in done.stdout
    again = command(tmp_path, server.url, *words)
    assert again.returncode == 0 and "downloaded" not in again.stdout and len(server.asked) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2O_DATA", str(tmp_path))
        assert len(list(LongBench("trec").samples())) == 8


def test_the_command_refuses_another_archive_than_the_pinned_one(server, tmp_path, shared):
    server.files[ZIP_PATH] = ZIP
    done = command(tmp_path, server.url, prompt_files(server, shared))
    assert done.returncode == 2 and prepare_data.DATA_SHA256 in done.stderr
    assert not (tmp_path / "longbench/data.zip").exists()


def test_the_command_without_a_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = command(tmp_path, dead, f"--prompts-url={dead}")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert lines[0].startswith(f"error: cannot reach {dead}") and lines[1].startswith("hint: ") and len(lines) == 2
    assert json.dumps([p.name for p in (tmp_path / "longbench").rglob("*") if p.is_file()]) == "[]"
