"""Child processes that do the heavy work of a page: how one is started, and how its work failed, in a sentence."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from quant_engine.spec import UserError

_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


def start_child(
    command: Sequence[str], stdin: int | None, stdout: int | IO[bytes], stderr: int | IO[bytes] | None, nice: int = 0
) -> subprocess.Popen[bytes]:
    """A child in a session of its own: Ctrl-C in the page's terminal is the page's to handle.

    When memory runs out the system takes the child and not the page. `nice` makes it step back from the processor for
    others. Raises OSError when the system can't start it.
    """
    process = subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, env=os.environ | _QUIET
    )
    with suppress(OSError):  # the child is gone already, or the system has no such setting: no reason not to work
        score = int(Path("/proc/self/oom_score_adj").read_text())
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(min(score + 500, 1000)))
        os.setpriority(os.PRIO_PROCESS, process.pid, nice)
    return process


def failure(error: BaseException, work: str, less_memory: str, retry: str) -> str:
    """Why a child's work failed, in one sentence that names what to change.

    Args:
        work: what failed, such as "run".
        less_memory: how it takes less memory, such as "choose a smaller model".
        retry: how to go on once the cause is gone, such as "ask again".
    """
    message, number = str(error), getattr(error, "errno", None)
    if isinstance(error, UserError):
        return message
    if isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message:
        return f"Memory ran out: {less_memory}."
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in message:
        return f"The disk is full: free some space, then {retry}; or set LOWBIT_HOME to another disk."
    if isinstance(error, PermissionError) or number == errno.EROFS:
        path = getattr(error, "filename", None) or message
        return f"{path} can't be written: make its folder writable or set LOWBIT_HOME."
    return f"The {work} failed inside the engine ({type(error).__name__}): the log has the details."
