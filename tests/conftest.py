"""Fixtures for all tests."""

import gc
import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: kernels run on the CPU
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and all they start, ignore it

ROOT = Path(__file__).resolve().parents[1]
LONG = ("test_extending.py", "test_slurm.py", "test_properties.py", "test_properties_batches.py", "test_wheel.py",
        "test_budgets.py", "test_rerun.py", "test_kill.py", "test_kill_together.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes begin first, so that two processes side by side end together."""
    places = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def what_was_there_is_not_searched() -> None:
    """No search for garbage looks at a million objects of imported modules again: a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What was set aside is given back, so that the end of the process says nothing of leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data, $D2O_SHARED or ../shared; skips where it is absent."""
    folder = Path(os.environ.get("D2O_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set D2O_SHARED)")
    return folder
