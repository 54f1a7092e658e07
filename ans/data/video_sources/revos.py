"""ReVOS (cilinyan/VISA): expressions that refer, that have to be reasoned about, and of absent objects.

JPEGImages/<source>/<video>/<frame>.jpg       a video's name in the files is <source>/<video>
meta_expressions_<split>_.json                `type_id` 0 referring, 1 reasoning, 2 of nothing
mask_dict.json                                of both splits
mask_dict_foreground.json                     the union of all objects of each video, which robustness is measured by
"""

from collections.abc import Iterator
from pathlib import Path

from ans.data.clips import Clip, expression, listing, load_masks, numbers, run_lengths, sized_frames
from ans.data.records import Skipped
from ans.data.sources.common import field

KINDS = {0: "referring", 1: "reasoning", 2: "absent"}


def read(root: Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of `train` or `valid`. Expressions of kind `absent` have no target; published results leave them out."""
    place = root / folder
    videos = listing(place / f"meta_expressions_{split}_.json")
    known, all_objects = load_masks(place / "mask_dict.json"), load_masks(place / "mask_dict_foreground.json")
    for video in videos:
        try:
            frames, height, width = sized_frames(root, f"{folder}/JPEGImages/{video.name}", video.frames)
            found, masks = [], {}
            for id_, said in video.expressions.items():
                if (type_id := field(said, "type_id", int)) not in KINDS:
                    raise ValueError(f"expression of type_id {type_id}")
                kind = KINDS[type_id]
                objects = () if kind == "absent" else numbers(said.get("anno_id", []))
                for key in objects:
                    if key not in known:
                        raise ValueError("expression whose mask is missing")
                    masks[key] = masks.get(key) or run_lengths(known[key], len(frames), height, width)
                found.append(expression(id_, said, objects, kind))
            if video.name not in all_objects:
                raise ValueError("video without foreground")
            foreground = run_lengths(field(all_objects[video.name], "masks_rle", list), len(frames), height, width)
        except ValueError as error:
            yield Skipped(f"{split}/{video.name}", str(error))
            continue
        yield Clip(video.name, split, frames, video.frames, height, width, masks, tuple(found), foreground)
