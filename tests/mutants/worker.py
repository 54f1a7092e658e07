"""Runs tests on changed code, in a copy of the repository: a process that imports every package once and forks for each run.

`tests.mutants` starts it as a script with the copy as its working directory, so whatever it imports of this project is the
copy's. Jobs come in and answers go out as lines of JSON.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import coverage
import pytest

TREE = Path.cwd()
PARENT = os.getppid()
QUIET = ("-n0", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--basetemp={TREE}-tmp")


class Selected:
    """A pytest plugin: run the tests named in `order`, in that order (all, where it is empty), and note which fail."""

    def __init__(self, order: list[str]) -> None:
        self.place = {name: number for number, name in enumerate(order)}
        self.failed: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.place:
            items[:] = sorted((item for item in items if item.nodeid in self.place), key=lambda item: self.place[item.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Covered(Selected):
    """A pytest plugin: note what each test takes and which lines it reaches, in processes that it starts too.

    What a fixture of a wider scope reaches counts for every test that uses it.
    """

    def __init__(self, measured: coverage.Coverage) -> None:
        super().__init__([])
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.users: dict[str, set[str]] = {}  # of a context: the tests that it counts for
        self.items: list[pytest.Item] = []
        self.context = ""

    def enter(self, context: str) -> None:
        self.context = os.environ["MUTANTS_CONTEXT"] = context
        self.measured.switch_context(context)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.enter(item.nodeid)
        self.users[item.nodeid] = {item.nodeid}
        start = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - start
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        around, context = self.context, f"fixture {fixturedef.baseid}::{fixturedef.argname}"
        users = {item.nodeid for item in self.items if fixturedef.argname in getattr(item, "fixturenames", ())}
        self.users.setdefault(context, set()).update(users, self.users.get(around, ()))
        self.enter(context)
        try:
            return (yield)
        finally:
            self.enter(around)


def cover(job: dict[str, Any]) -> dict[str, Any]:
    """Run whole folders of tests on the unchanged code."""
    config = TREE / "coverage.ini"
    # For the processes that tests start: coverage reads this file when an interpreter comes up.
    config.write_text(
        f"[run]\nparallel = true\ndata_file = {TREE}/covered\ninclude = {TREE}/ans/*\ncontext = ${{MUTANTS_CONTEXT}}\n"
    )
    os.environ["COVERAGE_PROCESS_START"] = str(config)
    measured = coverage.Coverage(data_file=f"{TREE}/covered", data_suffix="main", include=[f"{TREE}/ans/*"], config_file=False)
    plugin = Covered(measured)
    measured.start()
    code = pytest.main([*QUIET, "-m", "not slow", *job["tests"]], plugins=[plugin])
    measured.stop()
    measured.save()
    if code:
        return {"failed": plugin.failed, "code": int(code)}
    whole = coverage.Coverage(data_file=f"{TREE}/covered", config_file=False)
    whole.combine([str(TREE)])
    data = whole.get_data()
    reach = {
        str(Path(file).relative_to(TREE)): {
            line: sorted(set().union(*(plugin.users.get(context, set()) for context in contexts)))
            for line, contexts in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    own = ("ans", "stages", "tests", "__main__", "conftest")
    modules = [name for name in sys.modules if name.partition(".")[0] not in own]
    return {"failed": [], "seconds": plugin.seconds, "reach": reach, "modules": modules}


def test(job: dict[str, Any]) -> dict[str, Any]:
    """Run single tests: those of `tests` until one fails, or all that `arguments` name."""
    plugin = Selected(job.get("tests", []))
    chosen = job.get("arguments") or list(dict.fromkeys(name.partition("::")[0] for name in job["tests"]))
    code = pytest.main([*QUIET, *(["-x"] if plugin.place else []), "--tb=line", *chosen], plugins=[plugin])
    return {"code": int(code), "failed": plugin.failed}


def in_child(call: Callable[[dict[str, Any]], dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a process of its own. The answer of one that takes too long is `{"timeout": true}`."""
    out, answer = TREE / "output.log", TREE / "answer.json"
    answer.unlink(missing_ok=True)
    start = time.monotonic()
    child = os.fork()
    if not child:
        _run(call, job, out, answer)
    try:
        ended = False
        while not ended and time.monotonic() - start < job["limit"] and os.getppid() == PARENT:
            time.sleep(0.02)
            ended = bool(os.waitpid(child, os.WNOHANG)[0])
    finally:
        try:
            os.killpg(child, signal.SIGKILL)  # itself, and what the tests started and left running
        except ProcessLookupError:
            pass
    if not ended:
        os.waitpid(child, 0)
        return {"timeout": True}
    if not answer.exists():
        return {"code": -1, "failed": ["the interpreter died"]}
    return json.loads(answer.read_text())


def _run(call: Callable[[dict[str, Any]], dict[str, Any]], job: dict[str, Any], out: Path, answer: Path) -> NoReturn:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (job["memory"], job["memory"]))
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for old, new in ((null, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        text = json.dumps(call(job))
        answer.write_text(text)
    finally:
        sys.stdout.flush()
        os._exit(0)


def main() -> None:
    sys.path[0] = str(TREE)
    sys.dont_write_bytecode = True  # a file that changes twice within a second would be read from its cache
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "import":
            for name in job["modules"]:
                try:
                    importlib.import_module(name)
                except Exception:  # made by hand in `sys.modules`, or not meant to be imported: the tests import what they need
                    pass
            gc.collect()
            gc.freeze()  # pytest collects garbage several times a run: not through all that was imported here
            answer: dict[str, Any] = {}
        elif job["do"] == "cover":
            answer = in_child(cover, job)
        else:
            path = TREE / job["file"] if job["file"] else None
            before = path.read_bytes() if path else b""
            try:
                if path:
                    path.write_text(job["text"], encoding="utf-8")
                answer = in_child(test, job)
            finally:
                if path:
                    path.write_bytes(before)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
