"""The library logs; commands show it."""

import subprocess
import sys

LIBRARY = """
import logging
log = logging.getLogger("ans.some.module")
log.info("4 images")
log.warning("all captions are the same")
"""


def said(code: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_a_command_shows_notes_and_warnings() -> None:
    code = f"from ans.errors import run\ndef main():\n    exec({LIBRARY!r})\nrun(main); run(main)"
    assert said(code) == ("4 images\n" * 2, "warning: all captions are the same\n" * 2)


def test_a_program_that_imports_the_library_decides_itself() -> None:
    assert said(f"import ans.errors\n{LIBRARY}") == ("", "all captions are the same\n")
    assert said(f"import logging\nlogging.basicConfig(level='ERROR')\nimport ans.errors\n{LIBRARY}") == ("", "")


def test_a_kernel_that_nobody_uses_is_not_missed() -> None:
    """bitsandbytes, on CPUs that could do more for 4 bits: the first line of a run would look like a broken installation."""
    warns = "import logging\nlogging.getLogger('bitsandbytes.backends.cpu.ops').warning('Failed to load')"
    assert said(f"from ans.logs import show\nshow()\n{warns}") == ("", "")
