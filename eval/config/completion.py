"""Completion in a shell: a script with the names and keys in it, so that a Tab starts no Python."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2o.errors import InputError
from eval.cells.names import GROUPS
from eval.config.launcher import LAUNCHERS

SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
SCRIPT = """\
# eval "$(python run_pred.py --shell-completion install={shell})"
{prepared}_d2o_words() {{
  local line=${{COMP_LINE:0:COMP_POINT}} cur words
  cur=${{line##* }}
  case $1 in python*) [[ $line == *run_pred.py\\ * ]] || return 0 ;; esac
  case $cur in
{cases}
    *) words={keys} ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
  [[ $COMP_WORDBREAKS == *=* && $cur == *=* ]] && COMPREPLY=("${{COMPREPLY[@]#"${{cur%"${{cur##*=}}"}}"}}")
  return 0
}}
complete -o default -F _d2o_words d2o-predict run_pred.py python python3
"""
FIXED = {"scorer": ("official", "fixed"), "hydra/launcher": tuple(LAUNCHERS), "engine.device": ("auto", "cpu", "cuda")}


def completion(asked: str, config_dir: Path) -> str:
    """The script of `install=bash`, to be read by the shell. Raises InputError for a shell that is not known."""
    shell = asked.removeprefix("install=")
    if shell not in SHELLS:
        hint = 'write: eval "$(python run_pred.py --shell-completion install=bash)"'
        raise InputError(f"--shell-completion {asked} is unknown: there is install={' | install='.join(SHELLS)}", hint)
    values = {group: sorted(file.stem for file in (config_dir / group).glob("*.yaml")) for group in (*GROUPS, "table")}
    keys = {f"{key}=" for key in (*_keys(OmegaConf.load(config_dir / "config.yaml")), *values, "hydra/launcher")}
    for group in GROUPS:
        for file in (config_dir / group).glob("*.yaml"):
            keys |= {f"{group}.{key}=" for key in _keys(OmegaConf.load(file)) if not key.startswith("_")}
    shown = {key: _quoted(f"{key}={one}" for one in names) for key, names in (values | FIXED).items()}
    cases = [f"    {key}=*) words={names} ;;" for key, names in shown.items()]
    flags = ("-m", "-c", "--help", "--methods", "--info", "--config-dir")
    words = _quoted((*sorted(keys - {"defaults=", "members=", "compare="}), *flags))
    return SCRIPT.format(shell=shell, prepared=SHELLS[shell], cases="\n".join(cases), keys=words)


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in OmegaConf.to_container(node, resolve=False).items() if not prefix else node.items():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _quoted(words: Any) -> str:
    return shlex.quote(" ".join(words))
