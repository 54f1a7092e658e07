"""Videos with expressions: the record that every reader of `ans/data/video_sources` produces, and what those readers share.

A clip's masks are run lengths, frame by frame; its frames are locators of `ans/data/images.py`, opened one by one.
"""

import hashlib
import importlib
import json
import pkgutil
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ans.data import masks, video_sources
from ans.data.disk import below
from ans.data.images import BROKEN_IMAGE, SEPARATOR, UNSEEN, hidden_turn, open_image, open_mask, size_and_turn
from ans.data.records import Skipped
from ans.data.sources.common import clean, field, parse_json
from ans.data.videos import Frames, VideoFile


def readers() -> tuple[str, ...]:
    """Return the names of all readers: the files of `ans/data/video_sources`."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(video_sources.__path__)))


@dataclass(frozen=True)
class ClipExpression:
    """`id` is that of the data set, `text` is asked. `objects`: keys of the clip's masks whose union is meant; None where the data set
    does not publish them. `kind`: a data set's own division (ReVOS's referring, reasoning and absent)."""

    id: str
    text: str
    objects: tuple[str, ...] | None
    kind: str = ""


@dataclass(frozen=True)
class Clip:
    """One video. `frames`: a locator each; `names`: what the data set calls them. `masks`: object -> compressed `counts` of each frame,
    "" where it is not seen. `foreground`: those of all objects of the video, of each frame, where the data set has them."""

    name: str
    split: str
    frames: tuple[str, ...]
    names: tuple[str, ...]
    height: int
    width: int
    masks: Mapping[str, tuple[str, ...]]
    expressions: tuple[ClipExpression, ...]
    foreground: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The files below the root that hold the frames: the pictures, or one video."""
        return tuple(dict.fromkeys(locator.partition(SEPARATOR)[0] for locator in self.frames))

    def target(self, expression: ClipExpression, frame: int) -> np.ndarray:
        """Return (h, w) bool: what is meant in one frame. Raises `ValueError` where that is not published."""
        if expression.objects is None:
            raise ValueError(f"{self.name}: the masks of expression {expression.id} are not published")
        return self._united([self.masks[key][frame] for key in expression.objects])

    def mask(self, key: str, frame: int) -> np.ndarray:
        """Return (h, w) bool: an object in one frame."""
        return self._united([self.masks[key][frame]])

    def all_objects(self, frame: int) -> np.ndarray:
        """Return (h, w) bool: the foreground of one frame; where the data set does not say it, the union of all masks."""
        return self._united([self.foreground[frame]] if self.foreground else [rows[frame] for rows in self.masks.values()])

    def _united(self, counts: Sequence[str]) -> np.ndarray:
        mask = np.zeros((self.height, self.width), bool)
        for text in counts:
            if text:
                mask |= masks.decode(text, self.height, self.width).astype(bool)
        return mask


class ClipFrames(Frames):
    """The pictures of a clip."""

    def __init__(self, root: Path, clip: Clip) -> None:
        self.root, self.locators = root, clip.frames
        path, _, number = clip.frames[0].partition(SEPARATOR)
        self.path = root / path
        self._video = VideoFile(below(root, path)) if number else None

    def __len__(self) -> int:
        return len(self.locators)

    def frame(self, number: int) -> Image.Image:
        locator = self.locators[number]
        return open_image(self.root, locator) if self._video is None else self._video[int(locator.partition(SEPARATOR)[2])]


def unreadable(root: Path, clip: Clip) -> str:
    """Return why training could not open a frame of a clip, the first that it could not; "" where it can open all."""
    try:
        for picture in ClipFrames(root, clip):
            if picture.size != (clip.width, clip.height):
                raise ValueError(f"{clip.files[0]}: a frame of another size than the first")
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


def draw_frames(count: int, frames: int, rng: np.random.Generator) -> list[int]:
    """Return numbers, ascending, of `frames` frames of `count`: each at most once where there are more than `frames` + 1, else at
    random."""
    return sorted(rng.choice(count, frames, replace=count <= frames + 1).tolist())


def draw_run(count: int, frames: int, rng: np.random.Generator) -> list[int]:
    """Return numbers, ascending, of `frames` frames of `count`, at least two, for a memory to go through: from anywhere, each the next one
    or the next but one of the last; where there are fewer, as `draw_frames`."""
    furthest = min(2, (count - 1) // (frames - 1))
    if not furthest:
        return draw_frames(count, frames, rng)
    step = 1 + int(rng.integers(furthest))
    start = int(rng.integers(count - step * (frames - 1)))
    return list(range(start, start + step * frames, step))


def open_frames(root: Path, clip: Clip, numbers: Iterable[int]) -> dict[int, Image.Image]:
    """Return the frames of these numbers, each once, in order of their first coming. Raises `ValueError` or `FileNotFoundError` for one
    that cannot be used."""
    frames, opened = ClipFrames(root, clip), {}
    for number in dict.fromkeys(numbers):
        opened[number] = frames[number]
        if opened[number].size != (clip.width, clip.height):
            width, height = opened[number].size
            raise ValueError(f"{clip.frames[number]}: {width} x {height} pixels, the clip's are {clip.width} x {clip.height}")
    return opened


def read(reader: str, root: str | Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of a data set in order, and a `Skipped` for each that cannot be used; `folder` lies below `root`.

    Raises `FileNotFoundError` for a missing listing, `ValueError` naming one that cannot be read, and for an unknown reader.
    """
    if reader not in readers():
        raise ValueError(f"reader: must be one of {', '.join(readers())}, is {reader!r}")
    if not Path(root, folder).is_dir():
        raise FileNotFoundError(f"{Path(root, folder)}: not found; it is looked for below {root}")
    yield from importlib.import_module(f"ans.data.video_sources.{reader}").read(Path(root), folder, split)


def checksum(clips: Iterable[Clip | Skipped]) -> str:
    """Return sha256 over all that a data set says: frames, expressions and masks. Of the pictures only names and sizes take part."""
    return hashlib.sha256(json.dumps([asdict(clip) for clip in clips], sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------- what the readers share


@dataclass(frozen=True)
class Listed:
    """A video of a `meta_expressions.json`. `expressions`: id -> what is said of it, in order of the ids as texts."""

    name: str
    frames: tuple[str, ...]
    expressions: Mapping[str, Mapping[str, Any]]


def load_json(path: Path) -> Any:
    """Return a JSON file's content. Raises `FileNotFoundError`, or `ValueError` naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not readable: {error}") from error


def load_masks(path: Path) -> dict[str, Any]:
    """Return a JSON file that says something by key. Raises as `load_json`, also for one that does not."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return content


def listing(path: Path) -> list[Listed]:
    """Read the videos of a `meta_expressions.json`, in order of their names. Frames and ids are sorted as texts ("10" before "2"), as all
    published code does. Raises as `load_json`, also for names that lead out of their folder."""
    found = []
    try:
        for name, video in sorted(field(load_json(path), "videos", dict).items()):
            frames = field(video, "frames", list)
            for part in (name, *frames):
                if not isinstance(part, str) or part.startswith("/") or ".." in part.split("/") or not part:
                    raise ValueError(f"{part!r:.80} is not a valid name of a video or frame")
            if len(set(frames)) < len(frames):
                raise ValueError(f"video {name}: a frame is listed twice")
            expressions = field(video, "expressions", dict)
            for id_ in expressions:
                field(expressions, id_, dict)
            found.append(Listed(name, tuple(sorted(frames)), dict(sorted(expressions.items()))))
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from error
    return found


def numbers(values: Any) -> tuple[str, ...]:
    """Return ids as texts, from a number, a text, or a list of such. Raises `ValueError` for anything else."""
    several = values if isinstance(values, list) else [values]
    if not all(isinstance(value, int | str) and not isinstance(value, bool) for value in several):
        raise ValueError(f"ids are {values!r:.80}, expected numbers or texts")
    return tuple(str(value) for value in several)


def sized_frames(
    root: Path, folder: str, names: Sequence[str], suffix: str = ".jpg", own: bool = False
) -> tuple[tuple[str, ...], int, int]:
    """Return locators of the frames `folder`/`name``suffix`, and their height and width. Raises `ValueError` for a frame that is not
    there, that is damaged, of another size than the first, or turned without that its size tells whether its masks are, too: those that
    are one's `own` are."""
    locators, sizes = [], []
    for name in names:
        locators.append(posixpath.join(folder, f"{name}{suffix}"))
        try:
            size, orientation = size_and_turn(root, locators[-1])
        except FileNotFoundError:
            raise ValueError(f"missing frame: {name}") from None
        except ValueError:
            raise ValueError(f"a frame that cannot be read: {name}") from None
        if hidden_turn(size, orientation) and not own:
            raise ValueError(f"a frame with an EXIF orientation: {name}; {UNSEEN}")
        sizes.append(size)
    if not sizes:
        raise ValueError("video without frames")
    if len(set(sizes)) > 1:
        raise ValueError("frames of different sizes")
    return tuple(locators), sizes[0][1], sizes[0][0]


def run_lengths(rles: Any, frames: int, height: int, width: int) -> tuple[str, ...]:
    """Return `counts` of each frame from a list of RLEs, None where nothing is seen; a mask without a pixel becomes "" too. Raises
    `ValueError` for a list of another length, or run lengths that are damaged."""
    if not isinstance(rles, list) or len(rles) != frames:
        raise ValueError("not one mask per frame")
    found = []
    for rle in rles:
        counts = "" if rle is None else masks.from_segmentation(rle, height, width)
        found.append(counts if counts and masks.measure(counts, height, width)[0] else "")
    return tuple(found)


def palette_masks(paths: Sequence[Path], height: int, width: int) -> dict[str, tuple[str, ...]]:
    """Return object (the value, from 1) -> `counts` of each frame, from a PNG per frame; a missing one shows nothing. Values need
    not be in a row. Raises `ValueError` for one that is damaged, of another size, or not of single values."""
    found: dict[str, list[str]] = {}
    for frame, path in enumerate(paths):
        if not path.is_file():
            continue
        try:
            image = open_mask(path)
        except BROKEN_IMAGE as error:
            raise ValueError(reason if (reason := str(error)).startswith("mask is a") else "a mask that cannot be read") from None
        if image.mode not in ("P", "L"):
            raise ValueError("a mask that is not a palette image")
        values = np.asarray(image)
        if values.shape != (height, width):
            raise ValueError("a mask of another size than its frame")
        for value in np.unique(values[values > 0]).tolist():
            found.setdefault(str(value), [""] * len(paths))[frame] = masks.from_array(values == value)
    return {key: tuple(rows) for key, rows in sorted(found.items())}


def expression(id_: str, said: Mapping[str, Any], objects: tuple[str, ...] | None, kind: str = "") -> ClipExpression:
    """Return an expression of a listing. Raises `ValueError` for a text that cannot be used."""
    return ClipExpression(id_, clean(field(said, "exp", str)), objects, kind)
