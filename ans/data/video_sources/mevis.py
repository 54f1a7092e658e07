"""MeViS (henghuiding/MeViS): expressions of motion, for one or several objects.

    <split>/meta_expressions.json
    <split>/mask_dict.json                        of train and valid_u; valid and test have none: their masks are not published
    <split>/JPEGImages/<video>/<frame>.jpg

An expression's `anno_id`s name rows of the masks; the union is meant. Videos of one frame are left out, as all its readers do.
"""

from collections.abc import Iterator
from pathlib import Path

from ans.data.clips import Clip, expression, listing, load_masks, numbers, run_lengths, sized_frames
from ans.data.records import Skipped


def read(root: Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of `train`, `valid_u` or `valid`."""
    place = root / folder / split
    videos = listing(place / "meta_expressions.json")
    known = load_masks(place / "mask_dict.json") if (place / "mask_dict.json").exists() else None
    for video in videos:
        try:
            if len(video.frames) < 2:
                raise ValueError("video of fewer than two frames")
            frames, height, width = sized_frames(root, f"{folder}/{split}/JPEGImages/{video.name}", video.frames)
            found, masks = [], {}
            for id_, said in video.expressions.items():
                objects = None if known is None else numbers(said.get("anno_id", []))
                for key in objects or ():
                    if known is None or key not in known:
                        raise ValueError("expression whose mask is missing")
                    masks[key] = masks.get(key) or run_lengths(known[key], len(frames), height, width)
                found.append(expression(id_, said, objects))
        except ValueError as error:
            yield Skipped(f"{split}/{video.name}", str(error))
            continue
        yield Clip(video.name, split, frames, video.frames, height, width, masks, tuple(found))
