"""Who may import whom, and what must stay out of the way of a quick start: read off the source, nothing is run."""

import ast
from graphlib import CycleError, TopologicalSorter
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
# Floors of a package from the top down: a module may import those of its own floor and below. What is named on none
# stands on REST.
EVAL_FLOORS = [["cli"], ["run"], ["track"], ["config", "plots"], ["tables"], ["tasks"], ["scores"], ["cells"],
               ["exits", "text", ""]]  # fmt: skip
D2O_FLOORS = [["stock"], ["lab"], ["engine"], ["cache"], ["REST"], ["kernels"], ["errors"]]
ENGINE_FLOORS = [["opened"], ["start", "probe", "rotary"], ["together", "turns"], ["readings"], ["reading", "side"],
                 ["generation", "replies"], ["engine", "graph", "reader", "sampling", "switch"]]  # fmt: skip
APART = [("eval.config", "eval.plots"), ("eval.plots", "eval.config")]  # neighbours that know nothing of one another
LIGHT = {"d2o.errors", "d2o.budget", "d2o.engine.sampling"}  # what all of eval may know; nothing heavy is in it
MODELS = ("eval.run.cell", "eval.run.models")  # the rest of it is theirs alone
HEAVY = {"torch", "transformers", "datasets", "wandb", "matplotlib", "jieba", "rouge", "rouge_score", "accelerate"}
HEAVY |= {"lm_eval", "numba"}
LATE = {"eval.tasks.lm_eval.model"}  # subclasses what is heavy, and is itself imported where it is used
HARNESS = {"hydra", "omegaconf", "datasets", "wandb", "lm_eval"}  # not on every machine that runs the engine


def sources(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]


def module(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST, top_only: bool = False) -> set[str]:
    """Dotted names that a file imports, modules and what is taken out of them; imports for typing count, `top_only`
    leaves out what stands inside functions and `if`s."""
    found, nodes = set(), tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def beside(path: Path) -> set[str]:
    """Dotted names that a file imports by a dot, `from .snapkv import SnapKV`, `from ..window import QueryWindow`."""
    found = set()
    for node in (one for one in ast.walk(parse(path)) if isinstance(one, ast.ImportFrom) and one.level):
        name = ".".join(filter(None, (module(path.parents[node.level - 1] / "__init__.py"), node.module)))
        found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found


MODULES = {module(path): path for part in ARROWS for path in sources(part)}
GRAPH = {name: ((imported(parse(path)) | beside(path)) & set(MODULES)) - {name} for name, path in MODULES.items()}


def first(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def floor(name: str, package: str, floors: list[list[str]]) -> int:
    room = name.removeprefix(package).lstrip(".").split(".")[0]
    rest = next((i for i, rooms in enumerate(floors) if "REST" in rooms), None)
    found = next((i for i, rooms in enumerate(floors) if room in rooms), rest)
    assert found is not None, f"{name} stands on no floor"
    return found


@pytest.mark.parametrize("part", ARROWS)
def test_arrows(part):
    for path in sources(part):
        assert first(imported(parse(path))) & OURS <= ARROWS[part], path


def test_no_circles():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("package", "floors"), [("eval", EVAL_FLOORS), ("d2o", D2O_FLOORS), ("d2o.engine", ENGINE_FLOORS)]
)
def test_arrows_run_down(package, floors):
    inside = [name for name in GRAPH if name.startswith(f"{package}.") or name == package == "eval"]
    up = [
        f"{name} -> {other}"
        for name in inside
        for other in GRAPH[name]
        if other in inside and floor(other, package, floors) < floor(name, package, floors)
    ]
    assert not up


def test_rooms_that_are_apart():
    for name, others in GRAPH.items():
        for one, other in APART:
            assert not (name.startswith(one) and any(o.startswith(other) for o in others)), name


def test_eval_knows_the_errors_and_the_budgets_of_the_engine_alone():
    for name, others in GRAPH.items():
        if name.split(".")[0] in ("eval", "eval_long_bench") and name not in MODELS:
            assert {other for other in others if other.startswith("d2o.")} <= LIGHT, name


def test_nobody_imports_a_method():
    """A method is found through its YAML; a family of methods may share a file among themselves."""
    for name, others in GRAPH.items():
        if name.split(".")[0] != "baselines":
            assert not {other for other in others if other.startswith("baselines")}, name


def test_methods_import_each_other_by_a_dot():
    """`from .snapkv import SnapKV`: where it is installed the folder has another name (d2o/stock/places.py)."""
    for path in sources("baselines"):
        assert "baselines" not in first(imported(parse(path))), path


def test_engine_needs_no_harness():
    for path in [*sources("d2o"), *sources("baselines")]:
        assert not first(imported(parse(path))) & HARNESS, path


def test_eval_starts_without_anything_heavy():
    for part in ("eval", "run_pred", "eval_long_bench"):
        for path in sources(part):
            assert module(path) in LATE or not first(imported(parse(path), top_only=True)) & HEAVY, path


def test_what_is_heavy_is_imported_late():
    for part in ("eval", "run_pred", "eval_long_bench"):
        for path in sources(part):
            assert not imported(parse(path), top_only=True) & LATE, path


def test_eval_is_never_imported_over_the_builtin():
    for part in ARROWS:
        for path in sources(part):
            names = {a.name for node in ast.walk(parse(path)) if isinstance(node, ast.Import) for a in node.names}
            assert "eval" not in names, path
