"""`python -m tests.mutants`: change the code in one place at a time and see whether the tests notice.

Works on copies of the repository in a temporary folder. Outcomes are kept in `runs/mutants.jsonl`: a killed mutant is not tried
again until the code or the test that killed it changes, one that survived not until the code or any test does.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from tests.mutants.equivalent import equivalent
from tests.mutants.faults import FAULTS, Fault
from tests.mutants.mutate import Mutant, mutants
from tests.mutants.settings import LEFT_OUT, MEMORY, MUTATED, PATIENCE, SAMPLE, SEED, TESTS, THRESHOLD

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "mutants.jsonl"
T = TypeVar("T")
R = TypeVar("R")


class Worker:
    """A warm process in a copy of the tree of its own, see `worker.py`."""

    def __init__(self, tree: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "tests/mutants/worker.py"],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the process that prints
        )

    def ask(self, **job: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(json.dumps({"memory": MEMORY} | job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a worker of tests.mutants has ended; its last words are above")
        return json.loads(line)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Workers:
    """As many workers as cores; `each` hands them one task after the other."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.all = workers
        self._free: SimpleQueue[Worker] = SimpleQueue()
        for worker in workers:
            self._free.put(worker)

    def each(self, call: Callable[[Worker, T], R], tasks: Iterable[T]) -> Iterator[R]:
        """The answers, as they come."""

        def one(task: T) -> R:
            worker = self._free.get()
            try:
                return call(worker, task)
            finally:
                self._free.put(worker)

        with ThreadPoolExecutor(len(self.all)) as pool:
            try:
                for done in as_completed([pool.submit(one, task) for task in tasks]):
                    yield done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in self.all:
                    worker.stop()
                raise


@contextmanager
def started(count: int) -> Iterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="ans-mutants.", ignore_cleanup_errors=True) as folder:
        trees = [Path(folder) / f"tree{number}" for number in range(count)]
        for tree in trees:
            copy_to(tree)
        workers = [Worker(tree) for tree in trees]
        try:
            yield Workers(workers)
        finally:
            for worker in workers:
                worker.stop()


def files() -> list[str]:
    """What belongs to the repository: tracked files, and new ones that git does not ignore."""
    listed = subprocess.check_output(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, text=True)
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def copy_to(tree: Path) -> None:
    for name in files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


class Basis:
    """Checksums of what an outcome rests on: the code; and of the tests those that killed, or else all."""

    def __init__(self, folders: Sequence[str]) -> None:
        own = ("tests/mutants/__main__.py", "tests/mutants/equivalent.toml", "tests/mutants/faults.py")
        names = [name for name in files() if not name.startswith(("docs/", "reports/")) and name not in own]
        self._sums = {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in names}
        self._tests = {name for name in names if re.fullmatch(r"tests/.*/test_\w+\.py", name)}
        self._folders = repr((sys.version, folders))

    def of(self, by: str = "") -> str:
        """`by`: the test that killed."""
        file = by.partition("::")[0]
        left_out = self._tests - self._read_by(file) if file in self._tests else set()
        lines = [f"{name} {digest}\n" for name, digest in self._sums.items() if name not in left_out]
        return hashlib.sha256("".join([self._folders, *lines]).encode()).hexdigest()[:16]

    def _read_by(self, file: str) -> set[str]:
        """A test module and those that it imports."""
        modules = re.findall(r"^from (tests\.[\w.]+) import", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        paths = {f"{module.replace('.', '/')}.py" for module in modules} & self._tests
        return {file}.union(*(self._read_by(path) for path in paths))


# ---------------------------------------------------------------- which tests reach a mutant


@dataclass(frozen=True)
class Coverage:
    """`seconds` that each test takes; `reach`: file -> line -> tests."""

    seconds: dict[str, float]
    reach: dict[str, dict[int, list[str]]]

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's statement, or, where that runs at import, any line of its file: the fast ones first."""
        lines = self.reach.get(mutant.file, {})
        first, last = (1, max(lines, default=0)) if mutant.at_import else mutant.lines
        names = {name for line in range(first, last + 1) for name in lines.get(line, ())}
        quickest: dict[str, float] = {}
        for name in names:
            file = name.partition("::")[0]
            quickest[file] = min(quickest.get(file, self.seconds[name]), self.seconds[name])
        return sorted(names, key=lambda name: (quickest[name.partition("::")[0]], name.partition("::")[0], self.seconds[name]))


def measure(workers: Workers, folders: Sequence[str], basis: Basis) -> Coverage:
    """Run the tests once on the unchanged code; have the workers import what they needed."""
    kept = KEPT.with_name(f"mutants-coverage-{basis.of()}.json")
    if kept.is_file():
        parts = json.loads(kept.read_text())
    else:
        count = len(workers.all)
        shares = [list(folders[number::count]) for number in range(min(count, len(folders)))]
        parts = list(workers.each(lambda worker, share: worker.ask(do="cover", tests=share, limit=3600), shares))
        for part in parts:
            if part.get("timeout") or part["failed"] or part.get("code"):
                sys.exit(f"error: the tests have to pass on the unchanged code first: {part}")
        for old in KEPT.parent.glob("mutants-coverage-*.json"):
            old.unlink()
        KEPT.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(parts))
    seconds: dict[str, float] = {}
    reach: dict[str, dict[int, list[str]]] = {}
    for part in parts:
        seconds |= part["seconds"]
        for file, lines in part["reach"].items():
            for line, names in lines.items():
                reach.setdefault(file, {}).setdefault(int(line), []).extend(names)
    modules = sorted({name for part in parts for name in part["modules"]})
    with ThreadPoolExecutor(len(workers.all)) as pool:
        list(pool.map(lambda worker: worker.ask(do="import", modules=modules), workers.all))
    return Coverage(seconds, reach)


# ---------------------------------------------------------------- mutants


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    outcome: str
    by: str

    def line(self) -> str:
        was, now = (" ".join(text.split("\n")) for text in (self.mutant.was, self.mutant.now))
        by = f"  [{self.by}]" if self.by else ""
        return f"{self.outcome:<10}  {self.mutant.file}:{self.mutant.line}  {was}  ->  {now}{by}"


def all_mutants(chosen: Sequence[str]) -> list[Mutant]:
    """Those of the files and folders `chosen`."""
    names = [name for name in files() if name.endswith(".py") and name not in LEFT_OUT]
    wanted = [name for name in names if any(name == path or name.startswith(f"{path.rstrip('/')}/") for path in chosen)]
    return [mutant for name in wanted for mutant in mutants(name, (ROOT / name).read_text(encoding="utf-8"))]


def try_mutants(workers: Workers, tried: Sequence[Mutant], covered: Coverage, basis: Basis) -> list[Result]:
    """Run each mutant's tests, printing its outcome. One whose outcome still holds (`runs/mutants.jsonl`) is not run again."""
    rests_on = cache(basis.of)
    known = {tuple(entry["key"]): entry for entry in read_kept() if entry["basis"] == rests_on(entry["by"])}

    def one(worker: Worker, mutant: Mutant) -> Result:
        if entry := known.get(mutant.key):
            return Result(mutant, entry["outcome"], entry["by"])
        tests = covered.tests(mutant)
        if not tests:
            return Result(mutant, "survived", "no test reaches it")
        limit = PATIENCE + 5 * sum(covered.seconds[name] for name in tests)
        answer = worker.ask(do="test", file=mutant.file, text=mutant.text, tests=tests, limit=limit)
        if answer.get("timeout"):
            return Result(mutant, "timeout", "")
        if answer["code"] == 0:
            return Result(mutant, "survived", "")
        return Result(mutant, "killed", answer["failed"][0] if answer["failed"] else "")

    results = []
    KEPT.parent.mkdir(exist_ok=True)
    with open(KEPT, "a", encoding="utf-8") as file:
        for result in workers.each(one, tried):
            results.append(result)
            print(result.line(), flush=True)
            if result.mutant.key not in known:
                entry = {"key": result.mutant.key, "outcome": result.outcome, "by": result.by, "basis": rests_on(result.by)}
                print(json.dumps(entry), file=file, flush=True)
    return results


def read_kept() -> list[dict[str, Any]]:
    if not KEPT.is_file():
        return []
    return [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]


def control(workers: Workers, results: Sequence[Result]) -> None:
    """Ends the program if a test that killed a mutant fails on the unchanged code, too, run the same way."""
    killers = sorted({result.by for result in results if "::" in result.by})
    if killers:
        answer = workers.all[0].ask(do="test", file="", text="", tests=killers, limit=3600)
        if answer.get("timeout") or answer["code"]:
            sys.exit(f"error: these tests killed mutants, but fail on the unchanged code: {answer}")
        print(f"The {len(killers)} tests that killed a mutant pass on the unchanged code.")


def report(results: Sequence[Result], whole: int) -> float:
    """Print survivors and the table of modules; return the score."""
    results = sorted(results, key=lambda result: (result.mutant.file, result.mutant.line))
    reasons = equivalent()
    without = [result for result in results if result.mutant.key[:3] in reasons]
    survived = [result for result in results if result.outcome == "survived" and result not in without]
    print()
    for result in without:
        print(f"equivalent  {result.line()}\n            {reasons[result.mutant.key[:3]]}")
    for result in survived:
        print(result.line())
    rows = {}
    for name in [*sorted({result.mutant.file for result in results}), "all"]:
        mine = [result for result in results if name in ("all", result.mutant.file)]
        same = sum(result in without for result in mine)
        outcomes = [result.outcome for result in mine if result not in without]
        rows[name] = [len(mine), outcomes.count("killed"), outcomes.count("timeout"), outcomes.count("survived"), same]
    width = max(map(len, rows))
    print(f"\n{'module':<{width}}  mutants  killed  timeout  survived  equivalent  score")
    score = 1.0
    for name, (total, killed, late, alive, same) in rows.items():
        score = (killed + late) / (total - same) if total > same else 1.0
        print(f"{name:<{width}}  {total:7}  {killed:6}  {late:7}  {alive:8}  {same:10}  {score:5.3f}")
    print(f"\n{len(results)} of {whole} mutants; score {score:.3f}, at least {THRESHOLD} is asked for.")
    wrong = [result for result in without if result.outcome != "survived"]
    if wrong:
        sys.exit("error: named as equivalent in tests/mutants/equivalent.toml, but not:\n" + "\n".join(map(Result.line, wrong)))
    tried = {result.mutant.key[:3] for result in results}
    files = {result.mutant.file for result in results}
    gone = [key for key in reasons if key[0] in files and key not in tried] if len(results) == whole else []
    if gone:
        sys.exit("error: named in tests/mutants/equivalent.toml, but there is no such mutant:\n" + "\n".join(map(str, gone)))
    return score


# ---------------------------------------------------------------- faults


def try_faults(workers: Workers, faults: Sequence[Fault]) -> list[Fault]:
    """Put each fault in and run its tests; return those that not every one of its tests has noticed."""
    tests = sorted({test for fault in faults for test in fault.tests})
    answer = workers.all[0].ask(do="test", file="", text="", arguments=tests, limit=3600)
    if answer.get("timeout") or answer["code"]:
        sys.exit(f"error: the tests of tests/mutants/faults.py have to pass on the unchanged code first: {answer}")

    def one(worker: Worker, fault: Fault) -> tuple[Fault, list[str]]:
        text = (ROOT / fault.file).read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            sys.exit(f"error: {fault.name}: the text to change occurs {text.count(fault.old)} times in {fault.file}, not once")
        answer = worker.ask(do="test", file=fault.file, text=text.replace(fault.old, fault.new), arguments=fault.tests, limit=600)
        red = answer.get("failed", [])
        # a file stands for its tests, and a test for all of its parameters
        return fault, [test for test in fault.tests if not any(re.match(rf"{re.escape(test)}(::|\[|$)", name) for name in red)]

    survived = []
    for fault, green in workers.each(one, faults):
        print(f"{'survived' if green else 'killed':<10}  {fault.file}  {fault.name}", *(f"[green: {test}]" for test in green))
        if green:
            survived.append(fault)
    print(f"{len(faults) - len(survived)} of {len(faults)} listed faults are killed.\n", flush=True)
    return survived


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("paths", nargs="*", default=MUTATED, help="what to mutate (default: as in settings.py)")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what has to kill them (default: as in settings.py)")
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"how many mutants to draw (default {SAMPLE})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"what the draw is keyed by (default {SEED})")
    parser.add_argument("--all", action="store_true", help="every mutant")
    faults = parser.add_mutually_exclusive_group()
    faults.add_argument("--no-faults", action="store_true", help="leave out the listed faults")
    faults.add_argument(
        "--faults", nargs="+", metavar="TEXT", help="only the listed faults with one of these in their names, no mutant"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.faults:
        chosen = [fault for fault in FAULTS if any(text in fault.name for text in args.faults)]
        with started(args.workers) as workers:
            return int(bool(try_faults(workers, chosen)))
    basis = Basis(args.tests)
    tried = every = all_mutants(args.paths)
    if not args.all and args.sample < len(every):
        tried = sorted(random.Random(args.seed).sample(every, args.sample), key=every.index)
    with started(args.workers) as workers:
        survived = [] if args.no_faults else try_faults(workers, FAULTS)
        results = try_mutants(workers, tried, measure(workers, args.tests, basis), basis)
        control(workers, results)
    score = report(results, len(every))
    return int(bool(survived) or score < THRESHOLD)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; what was found so far is kept, and the same command goes on from there")
