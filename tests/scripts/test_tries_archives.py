"""Archives that are not what they should be: two lines, and nothing half done is left behind."""

import bz2
import io
import struct
import zipfile
import zlib

import pytest
from tries import end, everything

from scripts import prepare_data

FILE = b'{"a": 1}\n' * 400



def packed(name: str = "data/trec.jsonl", content: bytes = FILE, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as zipped:
        zipped.writestr(name, content)
    return buffer.getvalue()


def changed(data: bytes, mark: bytes, at: int, new: bytes) -> bytes:
    """`new` put `at` bytes behind every `mark`."""
    found = bytearray(data)
    place = found.find(mark)
    while place >= 0:
        found[place + at : place + at + len(new)] = new
        place = found.find(mark, place + 1)
    return bytes(found)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
ZIP = packed()
MIDDLE = len(packed(content=b"")) // 3 + 20
ARCHIVES = {
    "empty": b"",
    "text": b"<html>",
    "a gzip": zlib.compress(FILE),
    "cut short": ZIP[:-30],
    "only its end": ZIP[-22:],
    "no set": packed("data/README.md"),
    "an unknown set": packed("data/unknown.jsonl"),
    "outside": packed("../trec.jsonl"),
    "absolute": packed("/trec.jsonl"),
    "encrypted": changed(changed(ZIP, LOCAL, 6, b"\x01\x00"), CENTRAL, 8, b"\x01\x00"),
    "an unknown packing": changed(changed(ZIP, LOCAL, 8, b"\x63\x00"), CENTRAL, 10, b"\x63\x00"),
    "a later version": changed(ZIP, CENTRAL, 6, b"\xff\x00"),
    "a wrong checksum": changed(changed(ZIP, LOCAL, 14, b"abcd"), CENTRAL, 16, b"abcd"),
    "a wrong size": changed(ZIP, CENTRAL, 24, struct.pack("<I", 7)),
    "without measure": changed(ZIP, CENTRAL, 24, struct.pack("<I", 0xFFFFFFF0)),
    "broken deflate": ZIP[:MIDDLE] + b"\xff" * 12 + ZIP[MIDDLE + 12 :],
    "broken bzip2": changed(packed(method=zipfile.ZIP_BZIP2), bz2.compress(b"")[:3], 4, b"\x00" * 9),
    "broken lzma": changed(packed(method=zipfile.ZIP_LZMA), b"\x5d\x00\x00", 6, b"\xff" * 12),
    "a name that is not UTF-8": changed(changed(ZIP, CENTRAL, 8, b"\x00\x08"), b"data/trec", 2, b"\xff"),
    "another offset": changed(ZIP, CENTRAL, 42, struct.pack("<I", 99)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_none(name, tmp_path, capsys):
    (tmp_path / "data.zip").write_bytes(ARCHIVES[name])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lcc.jsonl.part").write_bytes(b"what a killed run left")
    error, _ = end(lambda: prepare_data.unpack(tmp_path / "data.zip", tmp_path / "data"), capsys)
    assert "data.zip" in error
    assert everything(tmp_path) == [str(tmp_path / "data"), str(tmp_path / "data.zip")]


@pytest.mark.parametrize("kind", ["folder", "link", "data is a file", "the archive is a folder", "no archive"])
def test_something_else_in_a_set_s_place(kind, tmp_path, capsys):
    archive, folder = tmp_path / "data.zip", tmp_path / "data"
    if kind == "the archive is a folder":
        archive.mkdir()
    elif kind != "no archive":
        archive.write_bytes(ZIP)
    if kind == "data is a file":
        folder.write_text("x")
    else:
        folder.mkdir()
    if kind == "folder":
        (folder / "trec.jsonl").mkdir()
    elif kind == "link":
        (folder / "trec.jsonl").symlink_to(tmp_path / "nowhere")
    before = everything(tmp_path)
    assert str(tmp_path) in end(lambda: prepare_data.unpack(archive, folder), capsys)[0]
    assert everything(tmp_path) == before
