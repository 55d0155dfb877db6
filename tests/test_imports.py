"""Who may import whom, and what must stay out of the way of a quick start: read off the source, nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"baselines", "d2o", "eval", "run_pred", "eval_long_bench", "scripts", "tests"}
ARROWS = {
    "d2o": {"d2o"},
    "eval": {"eval", "d2o"},
    "baselines": {"baselines", "d2o"},
    "run_pred": {"run_pred", "d2o", "eval"},
    "eval_long_bench": {"eval", "d2o"},
    "scripts": {"d2o", "eval", "scripts"},
}
HEAVY = {"torch", "transformers", "datasets", "wandb", "matplotlib", "jieba", "rouge", "rouge_score", "accelerate"}
HEAVY |= {"lm_eval"}
LATE = {"lm_eval_model.py"}  # subclasses what is heavy, and is itself imported where it is used
HARNESS = {"hydra", "omegaconf", "datasets", "wandb", "lm_eval"}  # not on every machine that runs the engine


def sources(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]


def imported(tree: ast.AST, top_only: bool = False) -> set[str]:
    """First names of the modules that a file imports; `top_only` leaves out what stands inside functions and `if`s."""
    found, nodes = set(), tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", ARROWS)
def test_arrows(part):
    for path in sources(part):
        assert imported(parse(path)) & OURS <= ARROWS[part], path


def modules_of(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules among `known` that a file imports, inside functions and for typing too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & known


def engine_imports() -> dict[str, set[str]]:
    """Module -> the modules that it imports, over d2o and baselines."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in [*sources("d2o"), *sources("baselines")]
        if path.name != "__init__.py"
    }
    return {name: modules_of(parse(path), set(names)) for name, path in names.items()}


def test_no_circle_in_the_engine_and_the_methods():
    imports = engine_imports()
    while imports:  # take away what imports nothing that is left; in a circle nothing can be taken away
        free = {name for name, used in imports.items() if not used & set(imports)}
        assert free, f"these import each other: {sorted(imports)}"
        imports = {name: used for name, used in imports.items() if name not in free}


def test_the_engine_imports_one_way():
    """lab > start > engine > cache > layer > kernels: whatever is reached from a level lies behind it."""
    imports = engine_imports()
    levels = [[name for name in imports if name.startswith("d2o.lab.")], ["d2o.start"], ["d2o.engine"], ["d2o.cache"],
              ["d2o.layer"], [name for name in imports if name.startswith("d2o.kernels.")]]  # fmt: skip
    for i, level in enumerate(levels):
        reached, todo = set(), list(level)
        while todo:
            for name in imports[todo.pop()] - reached:
                reached.add(name)
                todo.append(name)
        ahead = {name for earlier in levels[:i] for name in earlier}
        assert level and not reached & ahead, f"{level[0]} reaches {reached & ahead}"


def test_eval_knows_the_errors_and_the_budgets_of_the_engine_alone():
    for path in [*sources("eval"), *sources("eval_long_bench")]:
        nodes = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0}
        ours = {name for name in names if name.split(".")[0] == "d2o"}
        assert ours <= {"d2o.errors", "d2o.budget"}, path


def test_engine_needs_no_harness():
    for path in [*sources("d2o"), *sources("baselines")]:
        assert not imported(parse(path)) & HARNESS, path


def test_eval_starts_without_anything_heavy():
    for path in [*sources("eval"), *sources("run_pred"), *sources("eval_long_bench")]:
        assert path.name in LATE or not imported(parse(path), top_only=True) & HEAVY, path


def test_what_is_heavy_is_imported_late():
    for path in [*sources("eval"), *sources("run_pred"), *sources("eval_long_bench")]:
        modules = {node.module for node in parse(path).body if isinstance(node, ast.ImportFrom)}
        assert not modules & {f"eval.{name.removesuffix('.py')}" for name in LATE}, path


def test_eval_is_never_imported_over_the_builtin():
    for part in ARROWS:
        for path in sources(part):
            names = {a.name for node in ast.walk(parse(path)) if isinstance(node, ast.Import) for a in node.names}
            assert "eval" not in names, path
