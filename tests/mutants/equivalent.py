"""Mutants that no test can kill, because the program does the same with them, from `equivalent.toml`."""

import tomllib
from pathlib import Path

LIST = Path(__file__).with_suffix(".toml")


def equivalent() -> dict[tuple[str, str, str], str]:
    """(file, the lines as they are, the lines as the mutant has them) -> why it makes no difference."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["equivalent"]
    return {(entry["file"], entry["was"], now): entry["reason"] for entry in entries for now in entry["now"]}
