"""The command line around a run: help, flags, exit codes. Quick: what makes a cell is imported for one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from d2o.errors import InputError
from eval.exits import end_on_sigterm, report
from eval.text import by_name

if TYPE_CHECKING:
    from eval.config.habits import Heard
    from eval.run.dry_run import SizeCell
    from eval.run.job import RunCell

USAGE = """\
usage: python run_pred.py [-m] [KEY=VALUE ...]

Predict what is missing of one cell (model x method x task) and print its score.

  python run_pred.py
  python run_pred.py method=h2o budget=0.1 limit=20
  python run_pred.py model=DIR task=longbench_trec task.data_dir=DIR task.prompts_dir=DIR
  python run_pred.py -m method=d2o,h2o budget=.1,.2
  python run_pred.py -m table=mini

  method=       {method}
  model=        {model}
                or a folder, or ORG/NAME of the hub
  task=         {task}
  table=        {table}
  budget=       fraction of the prompt (<= 1), slots per layer and KV head (> 1), or bytes of all layers (64MiB)
  budget_generated=   written alike: slots of what follows the prompt, apart from the prompt's
  limit=        only the first N rows
  shard=        3/8: only the third of eight parts of the rows
  batch_size=   rows at once; auto: as many as fit
  seed=         of whatever is drawn at random
  results_dir=  where the cells lie; the same command goes on where it stopped
  scorer=       official | fixed
  engine.*      chunk, dtype, device, evict_every, kv_bits
  sampling.*    temperature (0: greedy), top_p, top_k, min_p, samples: answers of a row
  plugins=      [mypackage.mymodule]: modules of your own that a _target_ may name
  wandb.*       mode (disabled | offline | online), project, group, entity, job_type, tags, notes
  show=         3: print three prompts as the model reads them, with their answers, and stop
  log_prompts=  true: every row keeps its prompt
  dry_run=      true: print rows, tokens, memory and time of every cell, and stop
  hydra/launcher=   local | joblib | slurm: cells as jobs, those that read the same prompts as one
  share_prefill=    false: cells that read the same prompts run one by one, with a launcher as jobs of their own
  method.*, model.*, task.*   the keys in configs/<group>/<name>.yaml

options:
  --methods [NAME ...]
                   the cards of methods: paper, reference, variant, defaults, intended differences, goldens
  -m, --multirun   one cell for every combination of the lists given, one after the other
  -c, --cfg [job]  print the config of the cell and stop; --info: where it comes from, too
  --config-dir DIR YAML files of your own over ours: DIR/method/mine.yaml is method=mine
  --shell-completion install=bash|zsh   a script for eval "$(...)"
  -h, --help       this text
exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted"""



def main(
    argv: list[str], run: RunCell, config_dir: Path, size: SizeCell | None = None, share: bool = False
) -> int:
    """Do what the words ask for: help, cards, one cell or a sweep of them; returns the exit code, prints every error.

    `run` makes a cell; `size` says for a dry run what it would take; `share`: the cells of a sweep that read the same
    prompts may read them together.
    """
    end_on_sigterm()
    try:
        if "-h" in argv or "--help" in argv:
            return _print(usage(config_dir))
        if "--methods" in argv:
            return _methods([word for word in argv if word != "--methods"], config_dir)
        from eval.config.habits import heard

        said = heard(argv)
        if said.completion is not None:
            return _completion(said.completion, config_dir)
        return _cells(said.argv, run, _with_own(said, config_dir), size, share)
    except BaseException as error:
        return report(error)


def usage(config_dir: Path) -> str:
    """What --help prints: the keys, and the names that each group has."""
    groups = ("method", "model", "task", "table")
    names = {group: sorted(file.stem for file in (config_dir / group).glob("*.yaml")) for group in groups}
    return USAGE.format(**{group: _wrapped(found) for group, found in names.items()})


def _print(text: str) -> int:
    print(by_name(text), flush=True)  # a pipe that has read enough shows here, not at the exit
    return 0


def _methods(names: list[str], config_dir: Path) -> int:
    from eval.config.cards import cards

    return _print(cards(names, config_dir))


def _completion(asked: str, config_dir: Path) -> int:
    from eval.config.completion import completion

    return _print(completion(asked, config_dir))


def _with_own(said: Heard, config_dir: Path) -> Path:
    """The folder of configs, with those of --config-dir over ours."""
    if said.config_dir is None:
        return config_dir
    from eval.config.overlay import overlaid
    from eval.config.words import Words

    return overlaid(said.config_dir, config_dir, Path(Words(said.argv).get("results_dir") or "results"))


def _cells(argv: list[str], run: RunCell, config_dir: Path, size: SizeCell | None, share: bool) -> int:
    flags = _flags(argv)
    from eval.config.words import Words, check_words

    check_words(flags.words)
    from eval.run.steps import run_command

    words = Words(flags.words)
    if flags.info:
        print(f"configs: {config_dir}\nwords:   {' '.join(words) or '(none)'}\nthe config of the cell:\n")
    show = flags.cfg or flags.info
    return run_command(words, run, config_dir, sweep=flags.multirun, show=show, size=size, share=share)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message, "python run_pred.py --help shows what can be written")


def _flags(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="run_pred.py", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", action="store_true")
    parser.add_argument("--info", action="store_true")
    parser.add_argument("words", nargs="*", metavar="overrides")
    return parser.parse_intermixed_args(argv)


def _wrapped(names: list[str], width: int = 100) -> str:
    """Names in rows that stand under the first one."""
    rows, line = [], ""
    for name in names or ["(none)"]:
        if line and len(line) + len(name) + 1 > width:
            rows.append(line)
            line = ""
        line = f"{line} {name}".strip()
    return f"\n{' ' * 16}".join([*rows, line])
