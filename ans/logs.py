"""What the library says reaches whoever runs a command: notes on stdout, warnings on stderr.

Modules of the library use `logging.getLogger(__name__)` and do not print, so that a program which imports them decides what it shows.
"""

import logging
import sys


class Console(logging.Handler):
    """Notes as they are, warnings with the name of their level."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), flush=True)


def show() -> None:
    """Show what the library says, from its notes on. Called once more, it changes nothing."""
    # bitsandbytes, which peft imports wherever it is, warns there of a kernel for 4 bits on CPUs that it would have to download
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    logger = logging.getLogger("ans")
    if not any(isinstance(handler, Console) for handler in logger.handlers):
        logger.addHandler(Console())
        logger.setLevel(logging.INFO)
        logger.propagate = False
