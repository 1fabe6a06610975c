"""How work that failed is told: in one sentence that names what to change, and on a command line with an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from quant_engine.spec import UserError, sentence

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)


def memory_ran_out(error: BaseException) -> bool:
    """Whether this is Python's, torch's or a GPU's way to say so."""
    message = str(error)
    return isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message


def failure(
    error: BaseException, work: str, less_memory: str, retry: str, details: str = "the log has the details"
) -> str:
    """Why work failed, in one sentence that names what to change.

    Args:
        error: what was raised.
        work: what failed, such as "run".
        less_memory: how it takes less memory, such as "choose a smaller model".
        retry: how to go on once the cause is gone, such as "ask again".
        details: where more is to be found about an error that nobody foresaw.
    """
    message, number = str(error), getattr(error, "errno", None)
    if isinstance(error, UserError):
        return message
    if isinstance(error, ValidationError):
        return sentence(error)
    if memory_ran_out(error):
        return f"Memory ran out: {less_memory}."
    if number in _NO_SPACE or "No space left on device" in message:
        return f"The disk is full: free some space, then {retry}; or set LOWBIT_HOME to another disk."
    if isinstance(error, PermissionError) or number in _NO_FOLDER:
        path = getattr(error, "filename", None) or message
        why = (getattr(error, "strerror", None) or "no permission").lower()
        return f"{path} can't be written ({why}): make its folder writable or set LOWBIT_HOME."
    if isinstance(error, OSError) and error.filename:
        why = (error.strerror or type(error).__name__).lower()
        return f"{error.filename} can't be used ({why}): check that path, then {retry}."
    if isinstance(error, ImportError):
        return f"A library is missing or doesn't load ({message}): install what requirements.txt lists, then {retry}."
    return f"The {work} failed inside the engine ({type(error).__name__}): {details}."


def database_failure(database: str, error: Exception) -> str:
    """What the system said about a SQLite file, such as "The run queue PATH", in one sentence that names what to
    change."""
    message = str(error)
    if "locked" in message:
        return f"{database} is held by another process for too long: try again, or stop that process."
    if "full" in message or "No space" in message:
        return (
            f"{database} can't be written because the disk is full: free some space or set LOWBIT_HOME to another disk."
        )
    if "not a database" in message or "malformed" in message:
        return f"{database} is damaged: move the file away, and the lab makes a new one."
    return f"{database} can't be written ({message}): make its folder writable or set LOWBIT_HOME to another folder."


@contextmanager
def exits_plainly(
    work: str, retry: str, debug: bool | None = None, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Ends the process with a sentence on standard error, whatever is raised inside.

    The exit code is 2 for what can't be done as asked, 1 for what failed, and 130 after Ctrl-C.

    Args:
        work: what is done, such as "command".
        retry: how to go on once a cause is gone, such as "give the command again".
        debug: whether the traceback comes before the sentence; without it, whether `--debug` is an argument.
        passing: errors that are left to whoever handles them outside.
    """
    try:
        yield
    except passing:
        raise
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; what was finished is kept.\n")
        raise SystemExit(130) from None
    except Exception as error:
        if "--debug" in sys.argv if debug is None else debug:
            traceback.print_exception(error)
        words = failure(error, work, "choose a smaller model", retry, "add --debug to see where")
        sys.stderr.write(f"Error: {words}\n")
        raise SystemExit(2 if isinstance(error, UserError | ValidationError) else 1) from None
