"""Changes to a good model folder, one thing of it at a time: functions that take the folder."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, GOOD = ROOT / "configs", ROOT / "models" / "tiny"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
CONFIG, ENDS, WEIGHTS, TOKENIZER, TEMPLATE = FILES
GONE = object()  # a file, or a field, that is not there


def fields(file, **given):
    """Fields of a JSON file in other words; GONE takes one away."""

    def change(folder):
        found = {**json.loads((GOOD / file).read_text()), **given}
        write(file, json.dumps({k: v for k, v in found.items() if v is not GONE}))(folder)

    return change


def write(file, content):
    """A file with other content; GONE takes it away."""

    def change(folder):
        (folder / file).unlink()
        if content is not GONE:
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def tensors(change_them):
    """Weights of which some are others."""

    def change(folder):
        found = load_file(GOOD / WEIGHTS)
        change_them(found)
        (folder / WEIGHTS).unlink()
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def a_folder(file):
    def change(folder):
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def a_loop(file):
    def change(folder):
        (folder / file).unlink()
        (folder / file).symlink_to(file)

    return change


def words(changed):
    """tokenizer.json, changed in place."""

    def change(folder):
        found = json.loads((GOOD / TOKENIZER).read_text())
        changed(found)
        write(TOKENIZER, json.dumps(found))(folder)

    return change


def config(**given):
    return fields(CONFIG, **given)


def template(text):
    return fields(TEMPLATE, chat_template=text)
