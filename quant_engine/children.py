"""Child processes that do the heavy work of a page."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


def start_child(
    command: Sequence[str],
    stdin: int | None,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes] | None,
    nice: int = 0,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """A child in a session of its own: Ctrl-C in the page's terminal is the page's to handle.

    When memory runs out the system takes the child and not the page. `nice` makes it step back from the processor for
    others; `environment` is added to the page's own. Raises OSError when the system can't start it.
    """
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        env=os.environ | _QUIET | dict(environment or {}),
    )
    with suppress(OSError):  # the child is gone already, or the system has no such setting: no reason not to work
        score = int(Path("/proc/self/oom_score_adj").read_text())
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(min(score + 500, 1000)))
        os.setpriority(os.PRIO_PROCESS, process.pid, nice)
    return process
