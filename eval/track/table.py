"""A table as a W&B artifact: its files in every format. One that did not change makes no new version."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from eval.cells.identity import digest
from eval.tables.fill import Filled
from eval.tables.formats import render
from eval.track.tracker import Unsent, in_one_line, quiet_wandb, wandb_settings

FILES = {"csv": "csv", "markdown": "md", "latex": "tex", "html": "html"}


def send_table(filled: Filled, target: Any, results_dir: Path) -> None:
    """`target` has project and group. The run is one per table. Raises Unsent where the server does not take it."""
    wandb = quiet_wandb()
    name = filled.table.name
    try:
        named = {"id": digest(["table", name])[:16], "name": f"table {name}", "job_type": "table"}
        place = {"project": target.project, "group": target.group, "dir": str(results_dir)}
        run = wandb.init(mode="online", settings=wandb_settings(wandb), **named, **place)
        artifact = wandb.Artifact(f"table-{name}", type="table", description=filled.table.title)
        with tempfile.TemporaryDirectory() as folder:
            for form, ending in FILES.items():
                file = Path(folder) / f"{name}.{ending}"
                file.write_text(render(filled, form).rstrip("\n") + "\n", encoding="utf-8")
                artifact.add_file(str(file))
            run.log_artifact(artifact)
            run.finish()
    except Exception as error:
        raise Unsent(f"the table: {in_one_line(error)}") from error
