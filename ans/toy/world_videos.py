"""Small data sets of videos in every published layout: shapes that move, cross, come and go, and expressions of their motion.

Part of the world where `world.videos` is not 0. In each film two objects look alike, stand still in the first six frames, and then cross:
only their motion tells which of them is meant, so that a model that reads the first five frames cannot know. In films of even numbers
they pass each other, one above the other; in the others one hides the other for a while. Beside the layouts there are such films
with expressions of the first frames alone, true of the other object later.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ans.config.schema import World
from ans.data.videos import VideoWriter
from ans.toy.scenes import COLOURS, SHAPES, Scene, Shape, render
from ans.toy.world_loops import jpeg, rle

STILL = 6
"""Frames in which nothing has moved yet."""
OBJECTS = 4
WIDTH, HEIGHT = 96, 64
STREAM = 77
"""The second number of a film's seed, beside those of `scenes.SPLITS`."""


@dataclass(frozen=True)
class Film:
    """`frames` (h, w, 3) each; `masks` (frames, objects, h, w) bool of what is seen of each object. `said`: texts, and the objects that
    each means. `at_first`: such texts that are true of the frames before anything moves, and later of the other one."""

    frames: list[np.ndarray]
    masks: np.ndarray
    said: list[tuple[str, tuple[int, ...]]]
    at_first: list[tuple[str, tuple[int, ...]]]


def film(seed: int, number: int, count: int, shift: float = 0.0) -> Film:
    """Return a film of `count` frames. Objects 0 and 1 look alike and cross, 0 to the right; 2 is away in the middle third; 3 comes in the
    second half."""
    rng = np.random.default_rng([seed, STREAM, number])
    colours, kinds = rng.permutation(list(COLOURS))[:3].tolist(), rng.permutation(list(SHAPES))[:3].tolist()
    first, second, low = HEIGHT * rng.permutation([0.17, 0.5, 0.83])
    if number % 2:
        first, second, low = *rng.permutation([0.3 * HEIGHT, 0.3 * HEIGHT + 4]), 0.75 * HEIGHT
    shapes = [
        Shape("small", "plain", colours[i], kinds[i], x * WIDTH, float(y), 0.13 * HEIGHT)
        for i, x, y in ((0, 0.2, first), (0, 0.8, second), (1, 0.35, low), (2, 0.7, low))
    ]
    background = float(rng.uniform(140, 215))
    frames, masks = [], np.zeros((count, OBJECTS, HEIGHT, WIDTH), bool)
    moving = max(1, count - STILL)
    for t in range(count):
        done = max(0, t - STILL + 1) / moving
        shown = [0, 1]
        shown += [2] if not count // 3 <= t < 2 * count // 3 else []
        shown += [3] if t >= count // 2 else []
        placed = [replace(shapes[i], x=shapes[i].x + (0.6 * WIDTH * done * (1, -1, 0, 0)[i])) for i in shown]
        scene = Scene(WIDTH, HEIGHT, tuple(placed), (background,) * 3)
        picture, drawn = render(scene, shift, np.random.default_rng([seed, STREAM, number, 1]), rng)
        for k, i in enumerate(shown):  # what is drawn later lies in front
            masks[t, i] = drawn[k] & ~drawn[k + 1 :].any(0)
        frames.append(picture)
    alike = f"{colours[0]} {kinds[0]}"
    said: list[tuple[str, tuple[int, ...]]] = [
        (f"the {alike} that moves to the right", (0,)),
        (f"The {alike} that moves to the left.", (1,)),
        (f"Which {kinds[1]} goes away and returns?", (2,)),
        (f"the {colours[2]} {kinds[2]} that comes later", (3,)),
        ("both that cross", (0, 1)),
    ]
    at_first: list[tuple[str, tuple[int, ...]]] = [(f"{alike} on the left", (0,)), (f"{alike} on the right", (1,))]
    return Film(frames, masks, said, at_first)


def write_frames(place: Path, made: Film, names: Sequence[str]) -> None:
    """Write the frames as JPEGs of these names."""
    place.mkdir(parents=True)
    for name, pixels in zip(names, made.frames, strict=True):
        (place / f"{name}.jpg").write_bytes(jpeg(pixels))


def write_content(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_palettes(place: Path, made: Film, names: Sequence[str], values: Sequence[int]) -> None:
    """Write a palette PNG per frame: object i has the value `values[i]`."""
    place.mkdir(parents=True)
    for name, masks in zip(names, made.masks, strict=True):
        picture = np.zeros((HEIGHT, WIDTH), np.uint8)
        for value, mask in zip(values, masks, strict=True):
            picture[mask] = value
        image = Image.fromarray(picture, "P")
        image.putpalette([part for value in range(256) for part in (value, 255 - value, value)])
        image.save(place / f"{name}.png")


def named(count: int, step: int = 1) -> list[str]:
    """Return the frame names of five digits."""
    return [f"{step * number:05d}" for number in range(count)]


def row(made: Film, i: int) -> list[dict[str, Any] | None]:
    """Return object i in each frame as MeViS has it: run lengths, None in every second frame in which it is not seen."""
    return [rle(mask) if mask.any() or t % 2 else None for t, mask in enumerate(made.masks[:, i])]


def write_mevis(root: Path, seed: int, counts: Sequence[int]) -> list[Film]:
    """Write `mevis/valid_u` with a film of each of these lengths, `mevis/valid` without masks. The videos are not in order, and one of them
    has no frames on disk; the first has more than ten expressions, and one of nothing."""
    films = [film(seed, number, count) for number, count in enumerate(counts)]
    for split in ("valid_u", "valid"):
        videos, masks = {}, {}
        for number in reversed(range(len(films))):
            made, names = films[number], named(counts[number])
            write_frames(root / "mevis" / split / "JPEGImages" / f"v{number}", made, names)
            for i in range(OBJECTS):
                masks[str(OBJECTS * number + i)] = row(made, i)
            said = made.said * (3 if number == 0 else 1) + ([("what is not there", ())] if number == 0 else [])
            videos[f"v{number}"] = {
                "expressions": {
                    str(k): {"exp": text}
                    | ({"obj_id": list(ids), "anno_id": [OBJECTS * number + i for i in ids]} if split == "valid_u" else {})
                    for k, (text, ids) in enumerate(said)
                },
                "frames": names,
                "vid_id": number,
            }
        videos["gone"] = {"expressions": {"0": {"exp": "a", "anno_id": [0]}}, "frames": named(2), "vid_id": 99}
        write_content(root / "mevis" / split / "meta_expressions.json", {"videos": videos})
        if split == "valid_u":
            write_content(root / "mevis" / split / "mask_dict.json", masks)
    return films


def write_revos(root: Path, seed: int, counts: Sequence[int]) -> list[Film]:
    """Write `revos` with films as its valid split; a question is of reasoning, and each film has one expression of an absent object."""
    films, videos, masks, foreground = [], {}, {}, {}
    for number, count in enumerate(counts):
        made, name, names = film(seed, 100 + number, count), f"source{number % 2}/v{number}", named(count, 5)
        films.append(made)
        write_frames(root / "revos" / "JPEGImages" / name, made, names)
        said: dict[str, dict[str, Any]] = {
            str(k): {
                "exp": text,
                "type_id": int("?" in text),
                "obj_id": list(ids),
                "anno_id": [OBJECTS * number + i for i in ids],
            }
            for k, (text, ids) in enumerate(made.said)
        }
        said["9"] = {"exp": "the dog", "type_id": 2, "obj_id": [], "anno_id": []}
        videos[name] = {"expressions": said, "frames": names, "height": HEIGHT, "width": WIDTH, "vid_id": number}
        masks |= {str(OBJECTS * number + i): row(made, i) for i in range(OBJECTS)}
        foreground[name] = {"masks_rle": [rle(seen.any(0)) for seen in made.masks]}
    write_content(root / "revos" / "meta_expressions_valid_.json", {"videos": videos})
    write_content(root / "revos" / "mask_dict.json", masks)
    write_content(root / "revos" / "mask_dict_foreground.json", foreground)
    return films


VALUES = (1, 2, 5, 7)
"""Of the objects in palette images: with a gap."""


def write_ref_youtube_vos(root: Path, seed: int, counts: Sequence[int]) -> list[Film]:
    """Write `ytvos` with films in train; the first also in valid, whose listing has a video of test too."""
    films, videos = [], {}
    base = root / "ytvos"
    for number, count in enumerate(counts):
        made, name, names = film(seed, 200 + number, count), f"v{number}", named(count, 5)
        films.append(made)
        write_frames(base / "train" / "JPEGImages" / name, made, names)
        write_palettes(base / "train" / "Annotations" / name, made, names, VALUES)
        single = [(text, ids[0]) for text, ids in made.said if len(ids) == 1]
        said = {str(k): {"exp": text, "obj_id": str(VALUES[i])} for k, (text, i) in enumerate(single)}
        videos[name] = {"expressions": said, "frames": names}
    write_content(base / "meta_expressions" / "train" / "meta_expressions.json", {"videos": videos})
    blind = {"expressions": {"0": {"exp": films[0].said[0][0]}}, "frames": named(counts[0], 5)}
    write_frames(base / "valid" / "JPEGImages" / "v0", films[0], named(counts[0], 5))
    write_content(base / "meta_expressions" / "valid" / "meta_expressions.json", {"videos": {"v0": blind, "t0": blind}})
    write_content(base / "meta_expressions" / "test" / "meta_expressions.json", {"videos": {"t0": blind}})
    return films


def write_ref_davis(root: Path, seed: int, counts: Sequence[int]) -> list[Film]:
    """Write `davis` with films in val, the first of which has a name that the texts misspell."""
    films, texts = [], {name: "" for name in ("annot1", "annot1_full_video", "annot2", "annot2_full_video")}
    base = root / "davis"
    names_of_videos = [("motorbike", "motor-bike"), *((f"film{i}", f"film{i}") for i in range(1, len(counts)))]
    for number, (name, written) in enumerate(names_of_videos):
        made, names = film(seed, 300 + number, counts[number]), named(counts[number])
        films.append(made)
        write_frames(base / "DAVIS/JPEGImages/480p" / name, made, names)
        write_palettes(base / "DAVIS/Annotations_unsupervised/480p" / name, made, names, (1, 2, 3, 4))
        for annotator in texts:
            for i in range(OBJECTS):
                texts[annotator] += f'{written} {i + 1} "{made.said[i][0]}, caf\u00e9 {annotator}"\n'
    (base / "DAVIS/ImageSets/2017").mkdir(parents=True)
    (base / "DAVIS/ImageSets/2017/val.txt").write_text("\n".join(name for name, _ in names_of_videos) + "\n")
    (base / "davis_text_annotations").mkdir()
    for annotator, text in texts.items():
        path = base / "davis_text_annotations" / f"Davis17_{annotator}.txt"
        path.write_text(text, encoding="latin-1" if "annot2" in annotator else "utf-8")
    return films


def write_video(path: Path, made: Film) -> None:
    """Write an mp4 of the frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path) as writer:
        for number, pixels in enumerate(made.frames):
            writer.add(Image.fromarray(pixels), Fraction(number, 24))


def write_masklets(place: Path, name: str, made: Film) -> None:
    """Write a film as SA-V has it: an mp4, and the masks of every fourth frame."""
    write_video(place / f"{name}.mp4", made)
    annotated = made.masks[::4]
    areas = annotated.sum((2, 3))
    seen = areas > 0
    changes = [int(np.count_nonzero(np.diff(seen[np.argmax(seen[:, i]) :, i].astype(int)))) for i in range(OBJECTS)]
    content = {
        "video_height": float(HEIGHT), "video_width": float(WIDTH), "masklet_id": list(range(OBJECTS)),
        "masklet": [[rle(mask) for mask in masks] for masks in annotated],
        "masklet_size_abs": (areas.sum(0) / np.maximum(seen.sum(0), 1)).tolist(), "masklet_visibility_changes": changes,
    }  # fmt: skip
    write_content(place / f"{name}_manual.json", content)


def write_sav(root: Path, seed: int, counts: Sequence[int]) -> list[Film]:
    """Write `sav` with films as SA-V's training videos."""
    films = [film(seed, 600 + number, count) for number, count in enumerate(counts)]
    for number, made in enumerate(films):
        write_masklets(root / "sav" / "sav_000", f"sav_{number:06d}", made)
    return films


def write_ref_sav(root: Path, seed: int, counts: Sequence[int]) -> list[Film]:
    """Write `refsav` with films as mp4s, of which every fourth frame is annotated; paths in its listing have the doubled folder."""
    films, listed = [], {}
    for number, count in enumerate(counts):
        made, name = film(seed, 400 + number, count), f"sav_{number:06d}"
        films.append(made)
        place = root / "refsav" / "sam_v_full" / "sav_train" / "sav_000"
        write_masklets(place, name, made)
        doubled = f"sav_000/sav_train/sav_000/{name}"
        objects = {str(i): {"formated": f"{text} {i}", "short_caps": [text]} for i, (text, _) in enumerate(made.said[:OBJECTS])}
        listed[name] = {"video_path": f"{doubled}.mp4", "anno_path": f"{doubled}_manual.json", "objects": objects}
    write_content(root / "refsav" / "Ref-SAV.json", listed)
    return films


def write_own(root: Path, seed: int, counts: Sequence[int]) -> list[Film]:
    """Write `own_videos` with films as folders of frames and as mp4s by turns."""
    films, lines = [], []
    base = root / "own_videos"
    for number, count in enumerate(counts):
        made, name = film(seed, 500 + number, count), f"clip{number}"
        films.append(made)
        if number % 2:
            write_video(base / "clips" / f"{name}.mp4", made)
        else:
            write_frames(base / "clips" / name, made, named(count))
        for i in range(OBJECTS):
            place = base / "masks" / name / f"object{i}"
            place.mkdir(parents=True)
            for t, mask in enumerate(made.masks[:, i]):
                if mask.any():
                    Image.fromarray(mask).save(place / f"{t:05d}.png")
        for text, ids in made.said:
            objects = [f"object{i}" for i in ids]
            lines.append(
                json.dumps({"clip": name, "object": objects[0] if len(ids) == 1 else objects, "text": text, "split": "val"})
            )
    (base / "expressions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return films


def write_crossing(root: Path, seed: int, films: int) -> None:
    """Write `crossing` in the layout of your own videos: films of ten to fourteen frames, with expressions of the first ones alone, as two
    of Ref-DAVIS17's four annotators write them. `films` each in the splits train and test, half as many in val."""
    base, lines = root / "crossing", []
    splits = ["train"] * films + ["test"] * films + ["val"] * ((films + 1) // 2)
    for number, split in enumerate(splits):
        made, name = film(seed, 700 + number, (10, 10, 12, 12, 14, 14)[number % 6]), f"{split}{number}"
        write_frames(base / "clips" / name, made, named(len(made.frames)))
        for i, side in enumerate(("left", "right")):
            place = base / "masks" / name / side
            place.mkdir(parents=True)
            for t, mask in enumerate(made.masks[:, i]):
                if mask.any():
                    Image.fromarray(mask).save(place / f"{t:05d}.png")
        for text, (i,) in made.at_first:
            lines.append(json.dumps({"clip": name, "object": ("left", "right")[i], "text": text, "split": split}))
    (base / "expressions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS = {
    "mevis": write_mevis,
    "revos": write_revos,
    "ref_youtube_vos": write_ref_youtube_vos,
    "ref_davis": write_ref_davis,
    "ref_sav": write_ref_sav,
    "sav": write_sav,
    "own_videos": write_own,
}
"""By the reader of each layout."""
PLACES = {
    "mevis": ("mevis", "valid_u"),
    "revos": ("revos", "valid"),
    "ref_youtube_vos": ("ytvos", "train"),
    "ref_davis": ("davis", "val"),
    "ref_sav": ("refsav", "eval"),
    "sav": ("sav", "train"),
    "own_videos": ("own_videos", "val"),
}
"""Where each is written: its folder, and the split that has masks."""


LENGTHS = (10, 14, 20, 9)
"""Frames of the films of a world, by turns."""


def write(root: Path, world: World) -> None:
    """Write `world.videos` films in each layout, see `PLACES`, and those of `write_crossing`."""
    for place in WRITERS.values():
        place(root, world.seed, [LENGTHS[number % len(LENGTHS)] for number in range(world.videos)])
    write_crossing(root, world.seed, world.videos)
