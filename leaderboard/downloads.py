"""Files that the browser saves: the table in a format, and a run's folder. Name, and content in base64."""

from __future__ import annotations

import base64
import re

from leaderboard import export
from leaderboard.boards import Boards
from leaderboard.table_view import select_table
from leaderboard.view import read_address
from quant_engine.runs import archive
from quant_engine.runs import folder as run_folder
from quant_engine.spec import UserError


def export_table(boards: Boards, address: str, format: str) -> dict[str, str]:
    """The table that an address describes, in one of `export.FORMATS`."""
    if format not in export.FORMATS:
        raise UserError(f"There is no format {format!r}; the formats are: {', '.join(export.FORMATS)}.")
    view = select_table(boards, read_address(address).query).view
    name = f"low-bit-lab-{re.sub(r'[^A-Za-z0-9]+', '-', view.query.model or 'all')}.{format}"
    return {"name": name, "content": base64.b64encode(export.FORMATS[format](view)).decode()}


def zip_run(run_id: str) -> dict[str, str]:
    """A run's folder as a zip file, as runs travel between machines."""
    path = run_folder.run_path(run_id)
    if not (path / "run.json").exists():
        raise UserError(f"There is no run {run_id!r} on this machine.")
    return {"name": f"{run_id}.zip", "content": base64.b64encode(archive.pack(path)).decode()}
