"""Prints the failures that a user can mend as one message without a traceback, and exits with 2.

By their types these are a UserError, a NumericalError, a file or disk that failed, a config that does not fit, and the
death of another process. Everything else is a bug and keeps its traceback. HYDRA_FULL_ERROR=1 shows every traceback.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from open_kandinsky.core.errors import NumericalError, UserError

REFUSED, INTERRUPTED = 2, 130  # exit codes
# Errors of gloo, NCCL and torch's store in a process that waits for another one, which has died.
GONE = ("Connection (closed|reset) by", "Socket (Timeout|closed)", "Broken pipe", "remote process (exited|has)")
MEMORY = "where the system killed it, memory is short: lower data.workers, data.shuffle_buffer or data.batch_size"
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again


@contextmanager
def exit_on_user_error(verb: str) -> Iterator[None]:
    """Turn a user's error into one message on stderr and exit code 2, and Ctrl-C into one line and 130."""
    try:
        yield
    except KeyboardInterrupt:
        leave(verb, "interrupted", INTERRUPTED)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning tidies up after Ctrl-C, then exits with 1
            leave(verb, "interrupted", INTERRUPTED)
        raise
    except Exception as error:
        text = message(error)
        if text is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        leave(verb, text, REFUSED)


def leave(verb: str, text: str, code: int) -> None:
    print(f"open-kandinsky {verb}: {text}", file=sys.stderr, flush=True)
    stop = SystemExit(code)
    stop.add_note(text)
    raise stop from None


def message(error: BaseException) -> str | None:
    """The message for the user who caused `error`; None where it is a bug."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    if is_about_the_config(error):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error.strerror)
        return f"{where}{error.strerror}{'; nothing was overwritten' if full else ''}"
    if isinstance(error, (UserError, NumericalError)):
        return str(error)
    return about_another_process(error)


def is_about_the_config(error: BaseException) -> bool:
    """Whether Lightning, Hydra or OmegaConf refused a config, by class names: importing the classes is slow."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"ConfigAttributeError", "ConfigKeyError"}:  # a bug: code that reads a key which no config has
        return False
    return bool(names & {"MisconfigurationException", "HydraException", "OmegaConfBaseException"})


def about_another_process(error: BaseException) -> str | None:
    """The message for torch's error after a data worker or another process of the run has died; None for others."""
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError):
        return None
    if worker := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is |exited )(.*)", text):
        return f"a data worker (process {worker[1]}) died, {worker[2].rstrip('. ')}; {MEMORY}"
    if re.search("|".join(GONE), text):
        return f"another process of this run is gone: what it said, here or in its own log, is the cause ({text[:200]})"
    return None
