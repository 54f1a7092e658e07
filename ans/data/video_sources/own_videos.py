"""Your own videos: clips, masks per frame, and a line of JSON per expression. docs/video.md explains it.

clips/<clip>.mp4, or clips/<clip>/<frame>.jpg or .png
masks/<clip>/<object>/<frame>.png      not zero is the object; of an mp4 a frame is its number in five digits; none: not seen
expressions.jsonl                      {"clip": "street", "object": "car", "text": "the car that turns"}
                                       {"clip": "street", "object": ["car", "bus"], "text": ["what stops"], "split": "val"}
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ans.data import masks
from ans.data.clips import Clip, ClipExpression, sized_frames
from ans.data.disk import below, spelled
from ans.data.images import frame
from ans.data.mask_files import read_mask
from ans.data.records import Noted, Skipped
from ans.data.sources.common import clean, field, not_misspelt, parse_json
from ans.data.videos import FrameFolder, VideoFile

EXPRESSIONS = "expressions.jsonl"
KEYS = {"clip", "object", "text", "split"}


@dataclass(frozen=True)
class Line:
    """One of expressions.jsonl; `number` counts from 1."""

    number: int
    clip: str
    objects: tuple[str, ...]
    texts: tuple[str, ...]
    split: str


def read(root: Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips with an expression of `split`; a line that cannot be used is a `Skipped` named by its number, and what looks wrong
    about a clip's masks a `Noted`."""
    base = root / folder
    lines, skipped = read_lines(base)
    yield from skipped
    by_clip: dict[str, list[Line]] = {}
    for line in lines:
        if line.split == split:
            by_clip.setdefault(line.clip, []).append(line)
    for clip, said in by_clip.items():
        try:
            found, notes = _clip(root, folder, clip, said, split)
            yield from (Noted(clip, note) for note in notes)
            yield found
        except (ValueError, FileNotFoundError) as error:
            yield Skipped(clip, str(error).replace(f"{base}/", ""))


def read_lines(base: Path) -> tuple[list[Line], list[Skipped]]:
    """Return the lines of a folder, and those that cannot be used. Raises `FileNotFoundError` without clips or lines."""
    if not (base / EXPRESSIONS).is_file() or not (base / "clips").is_dir():
        raise FileNotFoundError(f"{base}: {EXPRESSIONS} and clips/ must both be there")
    lines, skipped = [], []
    for number, content in enumerate((base / EXPRESSIONS).read_bytes().splitlines(), start=1):
        if not content.strip():
            continue
        try:
            line = Line(number, *_line(content))
            for name in (line.clip, *line.objects):
                below(base, name)
                if "/" in name:
                    raise ValueError(f"{name!r:.80}: the name of a clip or an object has no /")
            lines.append(line)
        except ValueError as error:
            skipped.append(Skipped(f"{EXPRESSIONS}:{number}", str(error)))
    return lines, skipped


def _line(content: bytes) -> tuple[str, tuple[str, ...], tuple[str, ...], str]:
    said: Any = parse_json(content)
    clip = field(said, "clip", str)
    if unknown := set(said) - KEYS:
        raise ValueError(f"unknown key {min(unknown)!r}; known are {', '.join(sorted(KEYS))}")
    objects, texts = (said[key] if isinstance(said.get(key), list) else [said.get(key)] for key in ("object", "text"))
    if not all(isinstance(value, str) and value for value in (*objects, *texts)) or not texts:
        raise ValueError("object and text are each a text or a list of texts")
    split = not_misspelt(field({"split": "train"} | said, "split", str))
    return clip, tuple(objects), tuple(dict.fromkeys(clean(text) for text in texts)), split


def _clip(root: Path, folder: str, name: str, said: list[Line], split: str) -> tuple[Clip, list[str]]:
    place = spelled(root, f"{folder}/clips/{name}")
    file = spelled(root, f"{place}.mp4")
    if (root / place).is_dir() and (root / file).exists():
        raise ValueError("both a folder of frames and an mp4 in clips/; remove one")
    if (root / place).is_dir():
        pictures = FrameFolder(root / place).names
        names = tuple(Path(one).stem for one in pictures)
        frames, height, width = sized_frames(root, place, pictures, "", own=True)
    elif (root / file).is_file():
        video = VideoFile(root / file)
        width, height = video[0].size
        names = tuple(f"{number:05d}" for number in range(len(video)))
        frames = tuple(frame(file, number) for number in range(len(video)))
    else:
        raise ValueError("neither a folder of frames nor an mp4 in clips/")
    rows: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for object_ in dict.fromkeys(key for line in said for key in line.objects):
        rows[object_], looks = _masks(root / spelled(root, f"{folder}/masks/{name}/{object_}"), names, height, width)
        notes += looks
    found = [
        ClipExpression(f"{line.number}-{i}" if i else str(line.number), text, line.objects)
        for line in said
        for i, text in enumerate(line.texts)
    ]
    return Clip(name, split, frames, names, height, width, rows, tuple(found)), notes


def _masks(place: Path, names: tuple[str, ...], height: int, width: int) -> tuple[tuple[str, ...], list[str]]:
    """Return `counts` of each frame, and notes on the masks, one of each kind with the first frame that it concerns."""
    called = f"masks/{place.parent.name}/{place.name}"
    there: dict[str, Path] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.suffix.lower() != ".png" or path.stem in there:
            raise ValueError(f"{called}/{path.name}: a frame's mask is one PNG, and nothing else lies there")
        there[path.stem] = path
    if not there:
        raise ValueError(f"{called}: no PNG")
    if strange := sorted(there.keys() - set(names)):
        raise ValueError(f"{called}/{strange[0]}.png: the clip has no such frame")
    found = []
    notes: dict[str, str] = {}
    for name in names:
        counts = ""
        if name in there:
            mask, looks = read_mask(there[name], f"{called}/{name}.png")
            for look in [*looks, *masks.suspicions(mask)]:
                notes.setdefault(look, f"{called}/{name}.png: {look}")
            if mask.shape != (height, width):
                raise ValueError(f"{called}/{name}.png: {mask.shape[1]} x {mask.shape[0]} pixels, the frame {width} x {height}")
            counts = masks.from_array(mask) if mask.any() else ""
        found.append(counts)
    return tuple(found), list(notes.values())
