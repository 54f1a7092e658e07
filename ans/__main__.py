"""`python -m ans`, and the command `ans` of an installed package: see `ans.cli`."""

from ans.cli import main as command_line
from ans.errors import run


def main() -> None:
    run(command_line)


if __name__ == "__main__":
    main()
