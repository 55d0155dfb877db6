"""The command line around a run: help, sweeps, errors of one line, exit codes. Quick: it imports nothing heavy."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from d2o.errors import InputError
from eval.exits import _terminate, report

if TYPE_CHECKING:
    from eval.cells.identity import Composed

Run = Callable[["Composed"], tuple[Path, str]]  # a cell's folder, and what to say at its end
USAGE = """\
usage: python run_pred.py [-m] [KEY=VALUE ...]

Predict what is missing of one cell (model x method x task) and print its score.

  python run_pred.py
  python run_pred.py method=h2o budget=0.1 limit=20
  python run_pred.py model=path model.path=DIR task=longbench_trec task.data_dir=DIR task.prompts_dir=DIR
  python run_pred.py -m method=d2o,h2o budget=.1,.2
  python run_pred.py -m table=mini

  method=       {method}
  model=        {model}
  task=         {task}
  table=        {table}
  budget=       fraction of the prompt (<= 1), slots per layer and KV head (> 1), or bytes of all layers (64MiB)
  limit=        only the first N rows
  shard=        3/8: only the third of eight parts of the rows
  batch_size=   rows at once
  seed=         of whatever is drawn at random
  results_dir=  where the cells lie; the same command goes on where it stopped
  scorer=       official | fixed
  engine.*      chunk, dtype, device
  wandb.*       mode (disabled | offline | online), project, group
  dry_run=      true: print rows, tokens, memory and time of every cell, and stop
  hydra/launcher=   local | joblib | slurm: every cell a job of its own; hydra.launcher.* are its knobs
  method.*, model.*, task.*   the keys in configs/<group>/<name>.yaml

options:
  --methods [NAME ...]
                   the cards of methods: paper, reference, variant, defaults, intended differences, goldens
  -m, --multirun   one cell for every combination of the lists given, one after the other
  -c, --cfg        print the config of the cell and stop
  -h, --help       this text
exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted"""




def main(argv: list[str], run: Run, config_dir: Path, size: Any = None) -> int:
    """Parse, compose, run one cell or a sweep of them; returns the exit code. `size`: eval.run.dry_run.Measure."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if "-h" in argv or "--help" in argv:
            print(usage(config_dir), flush=True)  # a pipe that has read enough shows here, not at the exit
            return 0
        if "--methods" in argv:
            from eval.config.cards import cards

            print(cards([word for word in argv if word != "--methods"], config_dir), flush=True)
            return 0
        return _main(argv, run, config_dir, size)
    except BaseException as error:
        return report(error)


def usage(config_dir: Path) -> str:
    groups = ("method", "model", "task", "table")
    names = {group: sorted(file.stem for file in (config_dir / group).glob("*.yaml")) for group in groups}
    return USAGE.format(**{group: _wrapped(found) for group, found in names.items()})








def _main(argv: list[str], run: Run, config_dir: Path, size: Any) -> int:
    args = _parse(argv)
    from eval.config.compose import configs, split_sweep
    from eval.config.expand import one_of_each
    from eval.config.group import expand, one_sweep
    from eval.config.launcher import check, take, take_dry
    from eval.config.table_jobs import expand_tables
    from eval.run.sweep import compose_all, dry, launch_all, remember, run_all

    launcher, words = take(args.overrides, config_dir)
    dry_run, words = take_dry(words)
    with configs(config_dir):
        asked = split_sweep(words) if args.multirun else [words]
        asked, tables = expand_tables(asked, config_dir)
        jobs, grouped = expand(asked, config_dir)
        jobs = one_sweep(one_of_each(jobs, config_dir))
        composed, codes = compose_all(jobs, config_dir, report)
    if args.cfg:
        from omegaconf import OmegaConf

        print("---\n".join(OmegaConf.to_yaml(cell.cfg) for cell in composed), end="")
        return max(codes, default=0)
    if codes and len(asked) == 1:
        return max(codes)  # a slip of the hand in a group must not start its other half
    if dry_run:
        return dry(composed, size, report) or max(codes, default=0)
    check(launcher)
    if args.multirun or launcher:
        remember(composed)
    if launcher:
        folders, failed = launch_all(composed, launcher, run, config_dir, report)
    else:
        quiet = grouped or bool(tables) or len(jobs) > len(asked)
        folders, failed = run_all(jobs, composed, run, report, quiet=quiet)
    codes += failed
    if len(folders) > 1:
        from eval.tables.side_by_side import side_by_side

        if shown := side_by_side(folders):
            print(shown)
    if grouped and folders:
        from eval.tables.group import group_table

        print(group_table(folders, composed[0].cfg.scorer, lambda text: print(f"note: {text}", file=sys.stderr)))
    for name in tables if folders else ():
        _print_table(name, config_dir, composed[0].cfg)
    if getattr(launcher, "wait", True) and (len(jobs) > 1 or launcher or (grouped and composed)):
        print(f"{len(jobs) - len(codes)} of {len(jobs)} cells done, {len(codes)} failed", file=sys.stderr)
    return 0 if not codes else 2 if set(codes) == {2} else 1


def _print_table(name: str, config_dir: Path, cfg: Any) -> None:
    from eval.tables.fill import fill
    from eval.tables.formats import render
    from eval.tables.read import read_table

    def note(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    print(render(fill(read_table(name, config_dir), Path(cfg.results_dir), config_dir, cfg.scorer, note), "terminal"))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message, "python run_pred.py --help shows what can be written")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="run_pred.py", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", action="store_true")
    parser.add_argument("overrides", nargs="*")
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
