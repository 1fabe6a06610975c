"""Where things lie on disk. Every folder can be moved with an environment variable.

LOWBIT_HOME      everything that the engine writes         default: ~/.cache/low-bit-lab
LOWBIT_MODELS    models fetched and composed               default: $LOWBIT_HOME/models
LOWBIT_RESULTS   run folders, one per run                  default: $LOWBIT_HOME/results
LOWBIT_SHIPPED   run folders that came with the project    default: assets/runs
LOWBIT_DATA      benchmark files of one's own, optional    default: none
"""

from __future__ import annotations

import os
from pathlib import Path

from quant_engine.spec import UserError, quoted

PROJECT = Path(__file__).resolve().parent.parent
ASSETS = PROJECT / "assets"


def _folder(variable: str, default: Path) -> Path:
    value = os.environ.get(variable)
    return Path(value).expanduser().resolve() if value else default


def named(path: str) -> Path:
    """A path as somebody names it, with ~ for a home. Raises UserError for what can't be one."""
    try:
        named = Path(path).expanduser()
        named.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no access, the home of nobody
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{quoted(path)} can't be read as a path: {reason}.") from None
    return named


def home() -> Path:
    return _folder("LOWBIT_HOME", Path.home() / ".cache" / "low-bit-lab")


def models() -> Path:
    return _folder("LOWBIT_MODELS", home() / "models")


def results() -> Path:
    return _folder("LOWBIT_RESULTS", home() / "results")


def shipped() -> Path:
    """Runs that were measured elsewhere and came with the project; never written to."""
    return _folder("LOWBIT_SHIPPED", ASSETS / "runs")


def shared() -> Path:
    """Runs that others have measured, fetched from a shared data set."""
    return home() / "shared"


def data() -> Path | None:
    """Benchmark files of one's own; None if there are none."""
    return _folder("LOWBIT_DATA", Path()) if os.environ.get("LOWBIT_DATA") else None


def checkpoints() -> Path:
    """Quantized weights, one folder per WeightSpec, shared by all runs that need them."""
    return home() / "checkpoints"


def queue() -> Path:
    """The SQLite file of the run queue."""
    return home() / "queue.sqlite"


def votes() -> Path:
    """The SQLite file of the blind votes."""
    return home() / "votes.sqlite"
