"""An interpreter that has the version of transformers that the official code pins."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

PINNED = ("transformers==4.57.0", "huggingface-hub==0.36.0", "tokenizers==0.22.1")
"""The version, and the last of what it depends on in versions that it accepts; all else is that of this environment."""


def official_python(folder: Path) -> str:
    """`ANS_OFFICIAL_PYTHON`: an interpreter that has the pinned version. Else one is made, which needs a package index: an
    environment that holds these packages and finds all others in this one."""
    if python := os.environ.get("ANS_OFFICIAL_PYTHON"):
        return python
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    python = str(folder / "bin" / "python")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", *PINNED], check=True)
    return python
