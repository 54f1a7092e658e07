"""Ref-YouTube-VOS (Seo et al., ECCV 2020): every fifth frame of YouTube-VOS, with expressions for one object each.

    meta_expressions/<split>/meta_expressions.json
    <split>/JPEGImages/<video>/<frame>.jpg        frames 00000, 00005, ...
    train/Annotations/<video>/<frame>.png         palette images: the value is the object; valid has none

The file of `valid` lists the videos of `test` too, which are taken off.
"""

from collections.abc import Iterator
from pathlib import Path

from ans.data.clips import Clip, Listed, expression, listing, numbers, palette_masks, sized_frames
from ans.data.disk import spelled
from ans.data.records import Skipped


def read(root: Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of `train` or `valid`."""
    listings = root / folder / "meta_expressions"
    videos = listing(listings / split / "meta_expressions.json")
    if split == "valid":
        others = {video.name for video in listing(listings / "test" / "meta_expressions.json")}
        videos = [video for video in videos if video.name not in others]
    for video in videos:
        try:
            yield clip(root, f"{folder}/{split}", video, split)
        except ValueError as error:
            yield Skipped(f"{split}/{video.name}", str(error))


def clip(
    root: Path, folder: str, video: Listed, split: str, pictures: str = "JPEGImages", annotations: str = "Annotations"
) -> Clip:
    """Return the clip of a video that lies in `folder`, in these parts of it. Raises `ValueError`."""
    frames, height, width = sized_frames(root, f"{folder}/{pictures}/{video.name}", video.frames)
    place = root / folder / annotations
    masks, found = {}, []
    if place.is_dir():
        if not (place / video.name).is_dir():
            raise ValueError("video without masks")
        paths = [root / spelled(root, f"{folder}/{annotations}/{video.name}/{name}.png") for name in video.frames]
        masks = palette_masks(paths, height, width)
    for id_, said in video.expressions.items():
        objects = numbers(said["obj_id"]) if place.is_dir() and "obj_id" in said else None
        for key in objects or ():
            masks.setdefault(key, ("",) * len(frames))  # an object that no frame shows
        found.append(expression(id_, said, objects))
    return Clip(video.name, split, frames, video.frames, height, width, masks, tuple(found))
