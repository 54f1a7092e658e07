"""Indexes made by the workers of a Dask cluster (`index.scheduler`), one of which dies."""

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ans.config import Config, load
from ans.config.schema import World
from ans.data import index, parts
from ans.data.parts import write_parts
from ans.data.subset_sa1b import subset_sa1b
from ans.toy import world
from ans.workspace import Workspace
from tests.data.test_index import PARAMS

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    quiet = {"silence_logs": 50, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=3, threads_per_worker=1, processes=True, **quiet) as made:
        yield made


def write(died: Path, items: Sequence[int], path: Path) -> None:
    """Write the items' sum; the process that does number 4 first dies of it."""
    if 4 in items and not died.exists():
        died.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_text(str(sum(items)))


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(cluster: Any, tmp_path: Path) -> None:
    work = partial(write, tmp_path / "died")
    written = write_parts(range(20), work, tmp_path / "parts", 2, "sums", "number", scheduler=cluster.scheduler_address)
    assert (tmp_path / "died").exists()
    assert [int(path.read_text()) for path in written] == [4 * n + 1 for n in range(10)]
    assert len(list((tmp_path / "parts").iterdir())) == 10, "nothing half done is left"
    with distributed.Client(cluster.scheduler_address) as client:
        client.wait_for_workers(3, timeout=20)


@pytest.mark.slow
def test_the_files_are_those_of_this_machine(cluster: Any, tmp_path: Path) -> None:
    root = tmp_path / "world"
    few = {name: 1 for name in World.model_fields if name not in ("seed", "shift", "new_colours")}
    world.write_world(root, World(**few | {"seed": 3, "sa1b_images": 8, "train_images": 12, "shift": 1.0}))
    base: Config = load(PARAMS).changed({"paths.root": str(root), "subset_sa1b.images": 7})
    found = []
    for name, scheduler in (("here", None), ("there", cluster.scheduler_address)):
        config, workspace = base.changed({"index.scheduler": scheduler}), Workspace(tmp_path / name)
        reports = [index.build(of, config, workspace, workers=1, part=3) for of in ("sa1b", "refcoco")]
        reports.append(subset_sa1b(config, workspace, workers=1, part=3))
        files = [workspace.index(of).read_bytes() for of in ("sa1b", "refcoco", "sa1b_subset")]
        found.append((reports, files))
    assert found[0] == found[1] and found[0][0][2]["images"] == 7


def test_no_scheduler_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CONNECTING", 0.2)
    with pytest.raises(ConnectionError, match="index.scheduler: tcp://127.0.0.1:9: no Dask scheduler answers"):
        write_parts([1], partial(write, tmp_path), tmp_path / "parts", 1, "sums", "number", scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("had", [False, True], ids=["never had a worker", "lost them all"])
def test_nobody_works(had: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WORKERLESS", 0.3)
    monkeypatch.setattr(parts, "LOOK", 0.1)
    if had:
        monkeypatch.setattr(distributed.Client, "wait_for_workers", lambda self, count, timeout: None)
    with distributed.LocalCluster(n_workers=0, silence_logs=50, dashboard_address=None) as made:
        address = made.scheduler_address
        with pytest.raises(ConnectionError, match=f"index.scheduler: {address}: had no Dask worker for 0.3 s"):
            write_parts(range(2), partial(write, tmp_path), tmp_path / "parts", 1, "sums", "number", scheduler=address)
