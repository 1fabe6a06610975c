"""A page's process, forked from one that has loaded what every page needs: it starts in a moment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from forked import FORKS

from quant_engine import folders


def start(log: Path, environment: Mapping[str, str], before: str) -> BaseProcess:
    """`python app.py` with this environment, its output in `log`, after the Python in `before`."""
    process = FORKS.Process(target=_serve, args=(str(log), dict(environment), before), daemon=True)
    process.start()
    return process


def _serve(log: str, environment: Mapping[str, str], before: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folders.PROJECT)
    os.environ.clear()
    os.environ.update(environment)
    exec(f"{before}\nimport app; app.main()", {})
