"""Ref-SAV (magic-research/Sa2VA): long descriptions of SA-V's objects.

    Ref-SAV.json                      {video: {video_path, anno_path, objects: {column: {formated, short_caps}}}}
    sam_v_full/sav_train/sav_000/<video>.mp4 and <video>_manual.json, as SA-V is published

An object's key is its column in each row of SA-V's masks. Every fourth frame is annotated, and only these are frames here. Paths in the
file hold a folder twice (`sav_000/sav_train/sav_000/x.mp4`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.clips import Clip, ClipExpression, load_masks
from ans.data.images import frame, read_frame
from ans.data.records import Skipped
from ans.data.sources.common import clean, field
from ans.data.sources.sav_video import ANNOTATED_EVERY, read_masklets
from ans.data.videos import VideoFile

VIDEOS = "sam_v_full"


def read(root: Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of the one listing; `split` is only their name."""
    for name, said in sorted(load_masks(root / folder / "Ref-SAV.json").items()):
        try:
            yield _clip(root, folder, name, said, split)
        except (ValueError, FileNotFoundError) as error:
            yield Skipped(name, str(error).replace(str(root / folder), "..."))


def _clip(root: Path, folder: str, name: str, said: Any, split: str) -> Clip:
    video = f"{folder}/{VIDEOS}/{_cut(field(said, 'video_path', str))}"
    annotation = root / folder / VIDEOS / _cut(field(said, "anno_path", str))
    if not (root / video).is_file() or not annotation.is_file():
        raise ValueError("neither video nor masks" if not annotation.is_file() else "no such video")
    masklets = read_masklets(annotation)
    count = len(range(0, len(VideoFile(root / video)), ANNOTATED_EVERY))
    if count != len(masklets.rles):
        raise ValueError(f"{len(masklets.rles)} annotated frames, the video has {count}")
    if read_frame(root / video, 0).size != (masklets.width, masklets.height):
        raise ValueError("masks of another size than the video")
    found, rows = [], {}
    for column, texts in sorted(field(said, "objects", dict).items()):
        if not column.isdecimal() or int(column) >= len(masklets.ids):
            raise ValueError("object that has no masks")
        k = int(column)
        rows[column] = tuple(
            masks.from_segmentation(row[k], masklets.height, masklets.width) if masklets.areas[i, k] else ""
            for i, row in enumerate(masklets.rles)
        )
        found.append(ClipExpression(column, clean(field(texts, "formated", str)), (column,)))
    numbers = range(0, ANNOTATED_EVERY * count, ANNOTATED_EVERY)
    frames = tuple(frame(video, number) for number in numbers)
    names = tuple(f"{number:05d}" for number in numbers)
    return Clip(name, split, frames, names, masklets.height, masklets.width, rows, tuple(found))


def _cut(path: str) -> str:
    """Map `sav_000/sav_train/sav_000/x.mp4` to `sav_train/sav_000/x.mp4`. Raises `ValueError` for a path that leaves its folder."""
    parts = path.split("/")
    if ".." in parts or path.startswith("/"):
        raise ValueError("a path that leaves its folder")
    return "/".join(parts[-3:]) if len(parts) > 3 else path
