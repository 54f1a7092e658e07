"""SA-V as published: objects through videos, without expressions, for loop 1. Layouts as in `ans/data/sources/sav_video.py`.

Of every video the annotated frames, every fourth, are frames here. Splits are `train` (the JSONs), `val` and `test` (folders of PNGs).
"""

from collections.abc import Iterator
from pathlib import Path

from ans.data import masks
from ans.data.clips import Clip
from ans.data.images import SEPARATOR, read_frame
from ans.data.records import Skipped
from ans.data.sources.sav_video import ANNOTATED_EVERY, plan, read_masklets, split_of, video_frame


def read(root: Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of a split. Raises `FileNotFoundError` without the folder."""
    for annotation, video, _ in plan(root, folder, folder):
        if split_of(annotation) != split:
            continue
        key = annotation.relative_to(root).as_posix()
        try:
            if not video.exists():
                raise ValueError("neither video nor frames")
            yield _clip(root, key, annotation, video, split)
        except (ValueError, FileNotFoundError) as error:
            yield Skipped(key, str(error).removeprefix(f"{annotation}: "))


def _clip(root: Path, key: str, annotation: Path, video: Path, split: str) -> Clip:
    found = read_masklets(annotation)
    rows = {
        str(id_): tuple(
            masks.from_segmentation(row[k], found.height, found.width) if found.areas[i, k] else ""
            for i, row in enumerate(found.rles)
        )
        for k, id_ in enumerate(found.ids)
    }
    numbers = range(0, ANNOTATED_EVERY * len(found.rles), ANNOTATED_EVERY)
    frames = tuple(video_frame(root, video, number) for number in numbers)
    path, _, number = frames[-1].partition(SEPARATOR)
    if number:
        read_frame(root / path, int(number))  # a video that is shorter than its masks
    names = tuple(f"{number:05d}" for number in numbers)
    return Clip(key, split, frames, names, found.height, found.width, rows, ())
