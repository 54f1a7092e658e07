"""README and docs say nothing that is not so: every command in them exists, takes these options, and its keys are in params.yaml.

Commands that read are run for real, in a small scratch repository or folder. Those that train for minutes are not: their options
go through DVC's own parser, their `-S` through the strict reader of params.yaml, and the pipeline that they start is what
tests/test_pipeline.py runs. Shell scripts are checked by `bash -n`.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from dvc.cli import parse_args
from dvc.utils.hydra import apply_overrides
from PIL import Image

from ans.cli import COMMANDS as COMMANDS_OF_ANS
from ans.cli import main, parser
from ans.config import load
from ans.config.sections import SECTIONS, all_fields, task_names
from ans.data.videos import VideoWriter
from ans.model.loading import read_tensors
from tests import forked

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
COMMANDS = ("dvc", "make", "python")
OTHERS = ("git", "source", "for", "exec")
"""What else may begin a line with a command in it; their options are not ours to check."""

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def blocks() -> list[tuple[Path, str, str]]:
    """(page, language, text) of every fenced block."""
    return [(page, *found) for page in PAGES for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in a block that is a list of commands; comments are gone, `;` and `&&` separate."""
    found = []
    for page, language, text in blocks():
        if language not in ("", "sh", "bash"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            parts = [words for words in split(line) if words]
            if parts and parts[0][0] in (*COMMANDS, *OTHERS):
                found += [(page.name, without(words)) for words in parts if without(words)[:1] in ([name] for name in COMMANDS)]
    return found


def split(line: str) -> list[list[str]]:
    """The words of each command in a line of shell; arithmetic becomes a number."""
    line = re.sub(r"\$\(\(.*?\)\)", "1", line.strip())
    if line.count("'") % 2:  # a quotation over several lines begins or ends here
        line = line.replace("'", "")
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, "#"
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def without(words: list[str]) -> list[str]:
    """The words after `exec`, or all."""
    return words[1:] if words[0] == "exec" else words


ALL = commands()


def of(*start: str) -> list[pytest.ParameterSet]:
    return [pytest.param(words, id=f"{page}: {' '.join(words)}") for page, words in ALL if tuple(words[: len(start)]) == start]


def test_there_is_something_to_check() -> None:
    assert len(ALL) > 20 and {words[0] for _, words in ALL} == set(COMMANDS)


@cache
def known() -> set[str]:
    """The paths of all settings and sections, and of what params.yaml has by name."""
    named = {f"{section}.{name}" for section in ("sources", "own", "variants") for name in PARAMS[section]}
    return {*SECTIONS, "preset", *(f"train.{name}" for name in task_names()), *all_fields(), *named}


@cache
def usage(module: str) -> str:
    """What the module says of itself."""
    done = forked.run(module, "--help", cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("words", of("make"))
def test_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words[1:]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("words", of("dvc"))
@pytest.mark.second
def test_dvc_takes_these_options(words: list[str], tmp_path: Path) -> None:
    """By DVC's own parser and writer; what it makes of params.yaml is a configuration; targets are stages."""
    arguments = parse_args(words[1:])
    overrides = []
    for override in getattr(arguments, "set_param", None) or []:
        key, _, value = override.partition("=")
        if "$" in value or "<" in value or value == "COMMIT":
            assert key in known(), f"{key} is not in params.yaml"
        else:
            overrides.append(f"{key}={value.split(',')[0]}" if getattr(arguments, "queue", False) else override)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", overrides)
    assert load(tmp_path / "params.yaml").tasks
    if words[1] in ("repro", "commit") or words[1:3] == ["exp", "run"]:
        for target in arguments.targets or []:
            assert target.split("@")[0] in STAGES, target


@pytest.mark.slow
@pytest.mark.parametrize("words", of("python", "-m"))
def test_modules_take_these_options(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that need no results are run; other modules have to exist and know the options by their own help."""
    module, arguments = words[2], words[3:]
    if module == "ans":
        command = parser().parse_args(arguments)
        if arguments[0] in (
            "demo",
            "serve",
            "compare",
            "evaluate",
            "plan",
            "validate",
            "import",
            "convert",
            "export",
            "push",
            "ground",
            "score",
            "dlc",
        ):
            assert command.run
            return
        shutil.copy(ROOT / "params.yaml", tmp_path)
        (tmp_path / "models" / "variants").mkdir(parents=True)
        (tmp_path / "weights").symlink_to(ROOT / "weights")
        (tmp_path / "models" / "variants" / "full").symlink_to(ROOT / "weights" / "tiny")
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(tmp_path / "photo.jpg")
        Image.new("L", (96, 64), 255).save(tmp_path / "mask.png")
        write_clip(tmp_path)
        for path in (tmp_path / word for word in arguments if word.startswith("data/world/")):
            path.parent.mkdir(parents=True)
            (tmp_path / "photo.jpg").rename(path)
        monkeypatch.chdir(tmp_path)
        main(arguments)
        return
    path = ROOT / Path(*module.split("."))
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    if module.startswith("stages.") or "<" in module:
        return
    for option in arguments:
        if option.startswith("-"):
            assert option in usage(module), f"{module} knows no {option}"


def test_commands_in_the_text_take_these_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Those in blocks, whole; those within a sentence too, which may leave out what a command has to be given."""
    seen, parse = 0, parser().parse_args
    for words in (words[3:] for _, words in ALL if words[:3] == ["python", "-m", "ans"]):
        assert parse(words).run
    for page in PAGES:
        for command in re.findall(r"`python -m ans ([^`]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
            seen += 1
            try:
                parse(shlex.split(command))
            except SystemExit:
                said = capsys.readouterr().err
                assert "the following arguments are required" in said, f"{page.name}: {command}: {said}"
    assert seen > 10


def write_clip(folder: Path) -> None:
    """clip.mp4 and frames_folder, of two frames, and the tiny model's own decoder under the name of SAM2's checkpoint."""
    (folder / "frames_folder").mkdir()
    with VideoWriter(folder / "clip.mp4") as writer:
        for number in range(2):
            frame = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
            frame.save(folder / "frames_folder" / f"{number}.jpg")
            writer.add(frame, Fraction(number, 24))
    decoder = "grounding_encoder.sam2_model."
    tensors = {name: tensor for name, tensor in read_tensors(ROOT / "weights" / "tiny").items() if name.startswith(decoder)}
    torch.save({"model": {name.removeprefix(decoder): t for name, t in tensors.items()}}, folder / "sam2_hiera_large.pt")


@pytest.mark.parametrize(
    "text", [pytest.param(t, id=f"{p.name} {i}") for i, (p, kind, t) in enumerate(blocks()) if kind in ("sh", "bash")]
)
def test_shell_scripts_are_well_formed(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_exist(page: Path) -> None:
    """`train.loop1.tau` and the like in the text are settings; `<task>` stands for any."""
    for name in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9<>\-]+)+)(?:: [^`]*|=[^`]*)?`", page.read_text(encoding="utf-8")):
        parts = name.split(".")
        if parts[0] not in PARAMS or parts[-1] in ("json", "py", "csv", "md", "yaml", "lock", "parquet", "png", "html", "npz"):
            continue
        assert name.replace("<task>", "loop1") in known(), f"{page.name}: {name} is not in params.yaml"


def test_measured_numbers_stand_in_their_files() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| ([0-9.]+) \| `([^`]+)` \| `([^`]+)` \|$", (ROOT / "docs/measured.md").read_text(), re.MULTILINE
    )
    assert rows
    for value, file, key in rows:
        node = json.loads((ROOT / file).read_text(encoding="utf-8"))
        for part in key.split("."):
            node = node[part]
        assert value == f"{node:.{len(value.partition('.')[2])}f}", f"{file} {key}"


def test_the_readme_shows_the_committed_run() -> None:
    """Its table's cIoU and the differences, against the results of the same commit."""
    page, results = (
        subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in ("README.md", "reports/summary.json")
    )
    table = r"^\| \| (base .*) \|\n.*\n\| cIoU \| (.*) \|\n\| difference to base \| (.*) \|$"
    names, scores, gains = (
        [re.sub(r"\*| \(.*", "", cell.strip()) for cell in cells.split("|")]
        for cells in re.search(table, page, re.MULTILINE).groups()
    )
    shown = {name: values for name, *values in zip(names, scores, gains, strict=True)}
    expected = {
        name: [f"{100 * values['ciou']:.1f}", f"{100 * values['difference']:+.1f}" if "difference" in values else ""]
        for name, values in json.loads(results).items()
    }
    assert shown == expected


@pytest.mark.slow
def test_what_only_reads_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc ... diff` and `dvc exp show`, in a scratch repository with one set of results committed and another on top."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def call(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write(name: str, text: str) -> None:
        path = tmp_path / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    write("figures/loss.svg", "<svg/>")
    write("train/plots/ref_mask.tsv", "step\tref_mask\n1\t0.5\n2\t0.25\n")
    results = {name: json.loads((ROOT / "reports" / name).read_text()) for name in ("summary.json", "train/metrics.json")}
    for name, of in results.items():
        write(name, json.dumps(of))
    write("variants.csv", "variant,ciou\nbase,0.25\nfull,0.5\n")
    write("eval/full/refcoco_val.json", '{"ciou": 0.5}')
    call("git", "init", "-q")
    call("git", "config", "user.email", "a@example.org")
    call("git", "config", "user.name", "A")
    call("dvc", "init", "-q")
    call("git", "add", "-A")
    call("git", "commit", "-qm", "first")
    for name, of in results.items():  # another run's, in every number
        write(name, re.sub(r"\d\.\d+", lambda number: f"{float(number[0]) + 0.01:.6f}", json.dumps(of)))
    write("eval/full/refcoco_val.json", '{"ciou": 0.98765}')
    monkeypatch.setenv("COLUMNS", "110")
    params = tmp_path / "params.yaml"
    params.write_text(re.sub(r"^  beta:    ", "  beta: 0.125", params.read_text(encoding="utf-8"), flags=re.MULTILINE))

    reading = (["metrics", "diff"], ["params", "diff"], ["plots", "diff"], ["exp", "show"])
    said = {" ".join(words): call(*words) for _, words in ALL if words[0] == "dvc" and words[1:3] in reading}
    assert "0.98765" in said["dvc metrics diff --targets reports/eval/full/refcoco_val.json"]
    assert (
        all(name in said["dvc metrics diff"] for name in ("full.ciou", "cosine_all")) and "train.beta" in said["dvc params diff"]
    )
    assert "0.98765" not in said["dvc metrics diff"], "each split's numbers are files, not columns"
    (table,) = {text for command, text in said.items() if command.startswith("dvc exp show")}
    assert all(name in table for name in ("full.ciou", "train.beta", "loss")) and max(map(len, table.splitlines())) <= 110


def test_help_of_the_command_line_names_all_commands() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main(["--help"])
    assert all(f"    {name} " in out.getvalue() for name in COMMANDS_OF_ANS)


def test_every_command_is_in_the_pages() -> None:
    shown = {words[3] for _, words in ALL if words[:3] == ["python", "-m", "ans"]}
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert shown <= set(COMMANDS_OF_ANS)
    assert all(f"python -m ans {name}" in text for name in COMMANDS_OF_ANS)
