"""The installed package: what is in the wheel, and that it works outside of the repository."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker

import ans

ROOT = Path(__file__).parent.parent
NAMES = ("Place", "Segmenter", "load_config", "open_video", "__version__")


def python(code: str, *options: str, cwd: Path = ROOT) -> str:
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_public_names_are_lazy() -> None:
    assert python("import ans, sys; ans.load_config; print(*({'torch', 'transformers'} & set(sys.modules)))") == ""
    assert set(ans.__all__) == set(NAMES) <= set(dir(ans))
    with pytest.raises(AttributeError, match="module 'ans' has no attribute 'Segmentor'"):
        ans.Segmentor  # noqa: B018
    from ans import Segmenter, load_config

    assert load_config(ROOT / "params.yaml").preset and Segmenter.from_pretrained


@pytest.mark.slow
def test_what_is_missing_without_sam2_is_said(tmp_path: Path) -> None:
    (tmp_path / "sam2").mkdir()
    (tmp_path / "sam2" / "__init__.py").write_text("raise ModuleNotFoundError('no', name='sam2')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\ntry: import ans.model.decoders.sam2\n"
    code += "except ModuleNotFoundError as error: print(error)"
    start, needed = python(code).rsplit(" ", 1)
    assert start == "this mask decoder needs sam2: pip install --no-deps"
    assert f"SAM2   := {needed}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the files that git has, or would take."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("reports/", "weights/", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", ".", "-w", "made"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (made,) = (folder / "made").iterdir()
    return made


@pytest.mark.slow
def test_the_wheel_has_the_library_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"ans", f"ans-{ans.__version__}.dist-info"}
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ans").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("ans/")} == sources, "also py.typed, page.css and page.js"


@pytest.mark.slow
def test_it_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own that sees this one's packages, from another folder, without network."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", binaries / "python", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    environment = os.environ | {"PYTHONPATH": sysconfig.get_paths()["purelib"]}

    def call(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = "ans.__file__, __version__, Place.__name__, Segmenter.__name__, load_config.__name__, open_video.__name__"
    code = f"import ans; from ans import {', '.join(NAMES)}; print({said})"
    place, *rest = call(binaries / "python", "-c", code).split()
    assert Path(place).is_relative_to(tmp_path / "venv") and rest == [ans.__version__, "Place", "Segmenter", "load", "open_video"]
    assert re.search(r"^    config ", call(binaries / "ans", "--help"), re.MULTILINE)
    assert call(binaries / "ans", "config", "train.loop1.tau", "--params", ROOT / "params.yaml").startswith("tau: 0.7 ")


def test_uv_installs_what_the_lock_file_says() -> None:
    """Along the dependencies in uv.lock, without extras and with those that `make env` has: requirements.lock and nothing else."""

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line[0] != "#")}
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]

    def installed(*extras: str) -> dict[str, str]:
        found: dict[str, str] = {}
        where = {"sys_platform": "linux", "extra": "extra-3-ans-dev" if "dev" in extras else ""}
        left, seen = [{"name": "ans", "extra": list(extras)}], []
        while left:
            one = left.pop()
            if one in seen or not Marker(one.get("marker", "python_version > '3'")).evaluate(where):
                continue
            seen.append(one)
            (package,) = [
                of for of in packages if of["name"] == one["name"] and of.get("version") == one.get("version", of.get("version"))
            ]
            found[one["name"]] = package.get("version", "")
            left += package.get("dependencies", [])
            left += [wanted for extra in one.get("extra", []) for wanted in package["optional-dependencies"][extra]]
        return {name: version for name, version in found.items() if not name.startswith(("ans", "cuda-", "nvidia-", "triton"))}

    # nvidia-ml-py is no part of CUDA, and wheel only builds sam2
    expected = {name: version for name, version in pinned.items() if name not in ("nvidia-ml-py", "wheel")}
    assert installed("dev", "serve", "dask", "four-bit") == expected
    assert installed().items() <= expected.items()


def test_the_image_leaves_out_what_git_leaves_out() -> None:
    """Data, models and runs are no part of what `docker build` copies."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    anchored = {line.strip("/") for line in lines if line.startswith("/")}
    assert {"data", "models", "runs", ".venv"} <= anchored <= set(ignored)
