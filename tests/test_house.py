"""The shape of the code: files, folders, functions and names that can be taken in at a glance. Read off the source."""

import ast
import statistics
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("d2o", "eval", "baselines", "scripts")
FILES = sorted(path for part in PACKAGES for path in (ROOT / part).rglob("*.py"))
FILES += [ROOT / "run_pred.py", ROOT / "eval_long_bench.py"]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MOST_LINES, MOST_FILES = 250, 20
LONGEST, MEDIAN, NINTH = 45, 8, 20  # lines of a function: none above, the median, the 90th percentile
MOST_PARAMETERS, WIDER = 7, 2  # and how many functions may have more
ONCE = ("Cell", "Plan", "settle", "read_rows", "read_config", "table", "Curves", "cells_table")  # one word, one thing
TENSORS = ("Tensor",)


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines(node: ast.FunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


def parameters(node: ast.FunctionDef) -> int:
    given = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
    return len(given) + len(node.args.kwonlyargs)


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_files_and_folders_are_small():
    files = FILES + sorted((ROOT / "tests").rglob("*.py"))
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > MOST_LINES}
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in files)
    assert not long
    assert not {name: n for name, n in folders.items() if n > MOST_FILES}


def test_functions_are_short():
    found = {where(path, node): lines(node) for path, tree in TREES.items() for node in functions(tree)}
    assert not {name: n for name, n in found.items() if n > LONGEST}
    lengths = sorted(found.values())
    assert statistics.median(lengths) <= MEDIAN
    assert lengths[int(0.9 * len(lengths))] <= NINTH


def test_functions_take_few_parameters():
    """Constructors are left out: their parameters are the settings of a YAML, and so is what builds a model of one. So
    are kernels of Triton and numba, which are handed pointers, strides and sizes one by one."""
    wide = [
        where(path, node)
        for path, tree in TREES.items()
        for node in functions(tree)
        if parameters(node) > MOST_PARAMETERS and node.name != "__init__" and not is_target(path, node.name)
        if not any(ast.unparse(mark).startswith(("triton.jit", "kernel", "part")) for mark in node.decorator_list)
    ]
    assert len(wide) <= WIDER, wide


def is_target(path: Path, name: str) -> bool:
    target = f"_target_: {str(path.relative_to(ROOT).with_suffix('')).replace('/', '.')}.{name}\n"
    return any(target in config.read_text(encoding="utf-8") for config in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", ONCE)
def test_one_word_for_one_thing(name):
    found = [
        where(path, node)
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
    ]
    assert len(found) <= 1, found


def test_what_is_public_is_documented():
    bare = [where(path, node) for path, tree in TREES.items() for node in public(tree) if not ast.get_docstring(node)]
    assert not bare


def test_a_tensor_has_a_shape():
    """A public function of tensors says the shape of one, `[B, T]`, in its docstring or its class's."""
    shapeless = []
    for path, tree in TREES.items():
        for node, told in told_of(tree):
            typed = ast.unparse(node.args) + ast.unparse(node.returns or ast.Constant(None))
            if any(name in typed for name in TENSORS) and "[" not in told:
                shapeless.append(where(path, node))
    assert not shapeless


def public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes of a module, and methods of its classes, whose name has no underscore in front."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    inside = [node for one in found if isinstance(one, ast.ClassDef) for node in one.body if isinstance(node, kinds)]
    return found + [node for node in inside if not node.name.startswith("_") and not overrides(node)]


def overrides(node: ast.AST) -> bool:
    """What a base class documents is documented: `recent` and the like say more only where there is more."""
    return isinstance(node, ast.FunctionDef) and node.name in INHERITED


def documented_in_a_base() -> set[str]:
    bases = [f"d2o/{name}.py" for name in ("layer", "method", "eviction", "storage", "ragged")] + ["eval/tasks/task.py"]
    trees = [TREES[ROOT / name] for name in bases]
    methods = [node for tree in trees for one in tree.body if isinstance(one, ast.ClassDef) for node in one.body]
    return {node.name for node in methods if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)}


INHERITED = documented_in_a_base() | {"main"}


def told_of(tree: ast.Module) -> list[tuple[ast.FunctionDef, str]]:
    """Public functions and methods with their docstrings, a method's with its class's."""
    found = []
    for node in public(tree):
        if isinstance(node, ast.ClassDef):
            told = ast.get_docstring(node) or ""
            inside = [n for n in node.body if isinstance(n, ast.FunctionDef) and n in public(tree)]
            found += [(one, told + (ast.get_docstring(one) or "")) for one in inside]
        elif isinstance(node, ast.FunctionDef) and node in tree.body:
            found.append((node, ast.get_docstring(node) or ""))
    return found
