"""`python -m ans`: see `ans.cli`."""

from ans.cli import main
from ans.errors import run

if __name__ == "__main__":
    run(main)
