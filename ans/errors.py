"""How wrong input reaches the user: one line that says what is wrong, not a traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ans import logs

FAILURES = "ANS_FAILURES"
"""Environment variable with a folder for the messages of several processes, of which the launcher prints the first."""


def run(main: Callable[..., None], *arguments: str) -> None:
    """Call `main` and turn an error in what the user gave (files, parameters, numbers that went wrong) into one message and exit
    status 1. All other exceptions are ours and keep their traceback; `ANS_TRACEBACK=1` keeps it for all. What the library logs is shown.
    """
    logs.show()
    try:
        main(*arguments)
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        if os.environ.get("ANS_TRACEBACK") or type(error) is RuntimeError:
            raise
        message = f"error: {_message(error)}\n(ANS_TRACEBACK=1 shows where it was found)\n"
        if folder := os.environ.get(FAILURES):
            (Path(folder) / str(os.getpid())).write_text(message, encoding="utf-8")
        else:
            print(message, file=sys.stderr, end="", flush=True)
        raise SystemExit(1) from None


def _message(error: Exception) -> str:
    """Return its text; of an error in a data-loading process, which PyTorch passes on as a whole traceback, the last line of that."""
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
