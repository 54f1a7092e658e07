"""No task learns from a photograph that is evaluated, by the way in which training makes its tasks."""

from collections.abc import Iterator

from ans.data.arrow import Index
from ans.data.samples import TRAIN_SPLIT
from ans.training.setup import load_tasks
from tests import pipeline
from tests.task_case import TaskCase


def splits_of(index: Index) -> Iterator[tuple[str, set[str]]]:
    return ((record.path, {region.split for region in record.regions}) for record in index.records())


def test_no_task_learns_from_evaluated_photographs(case: TaskCase) -> None:
    """The loops read RefCOCO here, of which some photographs are evaluated in RefCOCO+ alone."""
    sources = {name: {} for name in ("refcoco", "refcocog", "sav")}
    config = pipeline.small_config(case.root, train__loop1__sources=sources, train__loop2__source="refcoco")
    tasks = load_tasks(config, case.indexes.workspace, case.model, first_process=False)
    indexes = [case.indexes(name) for name in config.training_indexes()]
    evaluated = {path for index in indexes for path, splits in splits_of(index) if splits - {"", TRAIN_SPLIT}}
    assert evaluated and all(task.left_out > 0 for task in tasks.values())
    referring, loop1, loop2 = (tasks[name] for name in ("referring", "loop1", "loop2"))
    used = {
        "referring": {referring.indexes[number].record(row).path for number, row in referring.rows},
        "loop1": {source.regions.sample(i)[0].path for source in loop1.sources for i in range(source.count)},
        "loop2": {loop2.source.sample(i)[0].path for i in range(loop2.source.count)},
    }
    assert all(paths and not paths & evaluated for paths in used.values())
    held = {path for name in ("refcoco", "refcocog") for path, splits in splits_of(case.indexes(name)) if TRAIN_SPLIT in splits}
    assert used["loop1"] >= held - evaluated, "and nothing else is left out"
