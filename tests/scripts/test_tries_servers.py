"""Servers that are not what they should be: two lines, nothing half done left behind, an end in time."""

import contextlib
import hashlib
import os
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tries import LONG, end, everything, two_lines

from eval.tasks.longbench import download
from scripts import command, prepare_data

FILE = b'{"a": 1}\n' * 400
SHA = hashlib.sha256(FILE).hexdigest()


def head(*lines: str, body: bytes = b"", first: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([first, "Connection: close", *lines, "", ""]).encode("latin-1") + body


def endless(write) -> None:
    write(head())
    while True:
        write(FILE * 10)


def drip(write) -> None:
    write(head("Content-Length: 3600"))
    while True:
        write(b"x")
        time.sleep(0.02)


def chunks_without_end(write) -> None:
    write(head("Transfer-Encoding: chunked"))
    while True:
        write(b"%x\r\n%b\r\n" % (len(FILE), FILE))


def zeros_packed(write) -> None:
    write(head("Content-Encoding: gzip", body=zlib.compress(bytes(1 << 20))))


def silent(write) -> None:
    time.sleep(1.5)


def half_a_head(write) -> None:
    write(b"HTTP/1.1 200 OK\r\nContent-Le")
    time.sleep(1.5)


ANSWERS = {
    **{f"status {code}": head(first=f"HTTP/1.1 {code} Whatever") for code in (400, 401, 403, 404, 410, 418, 451)},
    **{f"busy {code}": head(first=f"HTTP/1.1 {code} Busy") for code in (429, 500, 502, 503, 504)},
    "range not there": head(first="HTTP/1.1 416 No"),
    "partial unasked": head("Content-Range: bytes 7-9/10", body=FILE[7:], first="HTTP/1.1 206 Partial"),
    "no content": head(first="HTTP/1.1 204 None"),
    "not modified": head(first="HTTP/1.1 304 Same"),
    "redirect to itself": head("Location: /f", first="HTTP/1.1 302 There"),
    "redirect to nowhere": head(first="HTTP/1.1 302 There"),
    "redirect to a file": head("Location: file:///etc/passwd", first="HTTP/1.1 302 There"),
    "redirect to no address": head("Location: http://[", first="HTTP/1.1 302 There"),
    "redirect to a word": head("Location: h\u00e9 llo", first="HTTP/1.1 302 There"),
    "redirect to a port": head("Location: http://127.0.0.1:99999/", first="HTTP/1.1 302 There"),
    "a page": head("Content-Type: text/html", body=b"<html>Sign in</html>"),
    "nothing": b"",
    "empty": head("Content-Length: 0"),
    "too short": head("Content-Length: 99999999", body=FILE),
    "too long": head("Content-Length: 10", body=FILE),
    "length of a word": head("Content-Length: many", body=b"x"),
    "length below zero": head("Content-Length: -5", body=b"x"),
    "length without end": head(f"Content-Length: {'9' * 5000}", body=b"x"),
    "length said twice": head("Content-Length: 3", "Content-Length: 4", body=b"abcd"),
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
    "bytes": bytes(range(256)) * 40,
    "no status": b"HTTP/1.1\r\n\r\n",
    "status of a word": b"HTTP/1.1 good OK\r\n\r\n",
    "status too large": b"HTTP/1.1 99999 OK\r\n\r\n",
    "a long first line": b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
    "a long header": head("X: " + "x" * 70_000, body=FILE),
    "many headers": head(*[f"X{i}: y" for i in range(300)], body=FILE),
    "broken chunks": head("Transfer-Encoding: chunked", body=b"zz\r\nabc\r\n"),
    "chunks cut off": head("Transfer-Encoding: chunked", body=b"fff\r\nabc"),
    "endless": endless,
    "endless chunks": chunks_without_end,
    "a drip": drip,
    "packed": zeros_packed,
    "silent": silent,
    "half a head": half_a_head,
}
ADDRESSES = ["", "nowhere", "ftp://127.0.0.1/f", "file:///etc/passwd", "http://", "http://[", "http://127.0.0.1:x/f",
             "http://127.0.0.1:99999/f", "http://127.0.0.1/a b", "http://127.0.0.1/\u00e9", "data:,x"]  # fmt: skip


@pytest.fixture
def server():
    """A server that answers every request with what stands in `.says`, whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.close_connection = True
            says = self.server.says
            with contextlib.suppress(OSError):  # who has read enough hangs up
                says(self.connection.sendall) if callable(says) else self.connection.sendall(says)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "SLOW_S", 0.2)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_not_the_file(name, server, tmp_path, capsys):
    server.says = ANSWERS[name]
    source = download.Source(f"http://127.0.0.1:{server.server_port}/f", most=1 << 22, pause_s=0)
    began = time.monotonic()
    error, _ = end(lambda: download.fetch(source, tmp_path / "f", SHA), capsys)
    assert "127.0.0.1" in error and time.monotonic() - began < 10
    assert all(place.endswith("f.part") for place in everything(tmp_path))  # what the next call goes on from


@pytest.mark.parametrize("url", ADDRESSES, ids=ascii)
def test_what_is_no_address(url, tmp_path, capsys):
    error, hint = end(lambda: download.fetch(download.Source(url, pause_s=0), tmp_path / "f", SHA), capsys)
    assert "is no address" in error and "https://" in hint and everything(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "loop", "socketless link", "part is a folder", "above is a file", "long"])
def test_something_else_in_the_file_s_place(kind, server, tmp_path, capsys):
    target = tmp_path / "deep" / "f"
    if kind == "above is a file":
        target.parent.write_text("x")
    elif kind == "long":
        target = tmp_path / LONG
    elif kind in ("folder", "part is a folder"):
        target.with_name("f" if kind == "folder" else "f.part").mkdir(parents=True)
    else:
        target.parent.mkdir()
        target.symlink_to(target if kind == "loop" else "nowhere")
    server.says = head(body=FILE)
    source = download.Source(f"http://127.0.0.1:{server.server_port}/f", pause_s=0)
    before = everything(tmp_path)
    assert str(tmp_path) in end(lambda: download.fetch(source, target, SHA), capsys)[0]
    assert everything(tmp_path) == before


def test_what_an_earlier_download_left_goes_with_the_next_call(tmp_path):
    (tmp_path / "f").write_bytes(FILE)
    (tmp_path / "f.part").write_bytes(b"half")
    assert download.fetch(download.Source("http://127.0.0.1:9/f"), tmp_path / "f", SHA) is False
    assert everything(tmp_path) == [str(tmp_path / "f")]


@pytest.mark.parametrize("word", ["data_sha256=abc", f"data_sha256={'g' * 64}", "prompts_url=nowhere", f"to=/{LONG}",
                                  "to=a\0b", "to=a\udcffb"])  # fmt: skip
def test_words_of_the_command(word, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D2O_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_ENDPOINT", "nowhere")
    two_lines(command.answer(prepare_data.main, "", [word]), *capsys.readouterr())
    assert os.listdir(tmp_path) == []
