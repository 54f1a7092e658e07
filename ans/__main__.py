"""`python -m ans`, and the command `ans` of an installed package: see `ans.cli`."""

import gc

from ans.cli import main as command_line
from ans.errors import run


def main() -> None:
    gc.set_threshold(
        100_000
    )  # most commands import PyTorch, a million objects that stay: to look for garbage among them takes a second
    run(command_line)
    gc.freeze()  # and half of one more at the end


if __name__ == "__main__":
    main()
