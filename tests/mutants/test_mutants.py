"""The runner on a project of one function, and the lists against the code that they speak of."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT, Coverage, Worker
from tests.mutants.equivalent import equivalent
from tests.mutants.faults import FAULTS, Fault
from tests.mutants.mutate import mutants
from tests.mutants.settings import LEFT_OUT, MUTATED, TESTS

SOURCE = '''"""A module."""

LIMIT = 3

def capped(values: list[int]) -> int:
    """The sum, at most `LIMIT`."""
    total = sum(values)
    if total > LIMIT:
        return LIMIT
    return total

def unused(ready: bool) -> None:
    if ready:
        raise ValueError("never " + "mind")
'''


def test_each_place_is_changed_once() -> None:
    assert [(mutant.line, mutant.was, mutant.now) for mutant in mutants("x.py", SOURCE)] == [
        (3, "LIMIT = 3", "LIMIT = None"),
        (3, "LIMIT = 3", "LIMIT = 4"),
        (7, "total = sum(values)", "total = None"),
        (7, "total = sum(values)", "total = sum(None)"),
        (8, "if total > LIMIT:", "if not (total > LIMIT):"),
        (8, "if total > LIMIT:", "if total >= LIMIT:"),
        (13, "if ready:", "if not (ready):"),
        (14, 'raise ValueError("never " + "mind")', "pass"),
    ]
    assert [mutant.at_import for mutant in mutants("x.py", SOURCE)] == [True] * 2 + [False] * 6


def test_arguments_are_left_out() -> None:
    changed = {mutant.now for mutant in mutants("x.py", "def f(a, b, c):\n    g(a, b, key=c, strict=True)\n")}
    assert changed == {"pass", "g(None, b, key=c, strict=True)", "g(a, None, key=c, strict=True)", "g(a, b, strict=True)"}


def test_labels_are_left_out_and_names_of_curves_are_not() -> None:
    changed = {mutant.now for mutant in mutants("x.py", 'PANELS = (Panel("loss", {"loop1_mask": "the mask", **more("a")}),)\n')}
    assert {'PANELS = (Panel("loss", {"XXloop1_maskXX": "the mask", **more("a")}),)'} == {now for now in changed if "XX" in now}


def test_equal_changes_are_told_apart() -> None:
    twice = mutants("x.py", "def f(a):\n    a += 1\n    a += 1\n")
    assert len({mutant.key for mutant in twice}) == len(twice) == len({mutant.text for mutant in twice}) == 6


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: `capped` with a test that does not look at the limit itself, and a fixture that calls it for two tests."""
    tree = tmp_path_factory.mktemp("project") / "tree"
    (tree / "tests/mutants").mkdir(parents=True)
    (tree / "ans").mkdir()
    shutil.copy(ROOT / "tests/mutants/worker.py", tree / "tests/mutants")
    (tree / "ans/small.py").write_text(SOURCE)
    (tree / "tests/test_small.py").write_text(
        "import pytest, subprocess, sys\n"
        "@pytest.fixture(scope='module')\n"
        "def nine():\n    from ans.small import capped\n    return capped([9])\n"
        "def test_first(nine):\n    assert nine < 9\n"
        "def test_second(nine):\n    assert nine == 3\n"
        "def test_alone():\n    from ans.small import capped\n    assert capped([1, 1]) == 2\n"
        "def test_process():\n    subprocess.check_call([sys.executable, '-c', 'from ans.small import capped; capped([1])'])\n"
    )
    return tree


@pytest.fixture(scope="module")
def worker(tree: Path) -> Iterator[Worker]:
    worker = Worker(tree)
    yield worker
    worker.stop()


def test_a_worker_finds_the_tests_and_runs_them(tree: Path, worker: Worker) -> None:
    answer = worker.ask(do="cover", tests=["tests"], limit=100)
    assert not answer["failed"]
    worker.ask(do="import", modules=answer["modules"])
    reach = {file: {int(line): names for line, names in lines.items()} for file, lines in answer["reach"].items()}
    covered = Coverage(answer["seconds"], reach)
    found = {mutant.now: mutant for mutant in mutants("ans/small.py", SOURCE)}
    first, second, alone, process = (f"tests/test_small.py::test_{name}" for name in ("first", "second", "alone", "process"))
    assert set(covered.tests(found["if total >= LIMIT:"])) == {first, second, alone, process}
    assert set(reach["ans/small.py"][9]) == {first, second}, "those that use the fixture which gets there"
    assert set(covered.tests(found["LIMIT = 4"])) == {first, second, alone, process}
    assert covered.tests(found["pass"]) == []

    def ask(text: str, names: list[str], limit: float = 100) -> dict:
        return worker.ask(do="test", file="ans/small.py", text=text, tests=names, limit=limit)

    assert ask(found["if total >= LIMIT:"].text, [first, second, alone]) == {"code": 0, "failed": []}
    assert ask(found["LIMIT = 4"].text, [alone, second, first]) == {"code": 1, "failed": [second]}
    assert ask(found["LIMIT = None"].text, [alone, second])["failed"] == [alone]
    start = time.monotonic()
    assert ask("while True: pass", [alone], limit=1) == {"timeout": True} and time.monotonic() - start < 10
    assert ask("import os; os._exit(0)", [alone])["failed"] == ["the interpreter died"]
    assert (tree / "ans/small.py").read_text() == SOURCE


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_listed_fault_fits_the_code(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1 and fault.old != fault.new
    assert fault.tests and all((ROOT / test.partition("::")[0]).exists() for test in fault.tests)


@pytest.mark.second
def test_what_is_named_as_equivalent_is_there() -> None:
    listed = equivalent()
    lines = {name: {line.strip() for line in (ROOT / name).read_text().splitlines()} for name in {key[0] for key in listed}}
    assert not [(file, was) for file, was, _ in listed if not set(was.split("\n")) <= lines[file]]
    assert all(was != now and reason for (_, was, now), reason in listed.items())


@pytest.mark.slow
def test_the_settings_name_what_is_there() -> None:
    assert all((ROOT / name).exists() for name in (*MUTATED, *LEFT_OUT, *TESTS))
