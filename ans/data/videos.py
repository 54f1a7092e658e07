"""Videos of any length, frame by frame: files, folders of frames, and writing a file. PyAV, which brings FFmpeg along, does the coding.

A frame is known by its number, from 0, in the order in which frames are shown; when it is shown is kept beside it, since the times of
many videos (of phones above all) are not those of one rate.
"""

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from PIL import Image

from ans.data.images import CONTAINERS, SUFFIXES, decode_from, open_container, open_image, shown_at, turned

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

FOLDER_RATE = 24
"""Frames a second of a folder, which says nothing of it: as DAVIS and SA-V were taken."""
NEAR = 16
"""A frame at most this many further on is reached by decoding the frames before it."""
_TICKS = 90_000


class Frames(Sequence[Image.Image], ABC):
    """Pictures in order, RGB and upright, each opened when it is asked for and not kept. `path`: what errors name."""

    path: Path

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        """Return a frame, decoded now and not kept. Raises `IndexError`, or `ValueError` or `FileNotFoundError` naming the file."""
        if isinstance(index, slice):
            return [self.frame(number) for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: has {len(self)} frames, there is no number {index}")
        return self.frame(number)

    @abstractmethod
    def frame(self, number: int) -> Image.Image:
        """Return the frame `number`, which is there."""


class Video(Frames):
    """The frames of one video. `times`: when each is shown, in seconds from the first."""

    times: Sequence[Fraction]

    def __len__(self) -> int:
        return len(self.times)


class VideoFile(Video):
    """A video file. Frames that are asked for in their order are decoded in one go, any other is sought, and the last one is kept."""

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such video")
        with _named(path), open_container(path) as container:
            self._shown = shown_at(str(path), path.stat().st_mtime_ns)
            base = container.streams.video[0].time_base or Fraction(1, av.time_base)
        if not self._shown:
            raise ValueError(f"{path}: not a readable video: it has no frames")
        self.times = [(shown - self._shown[0]) * base for shown in self._shown]
        self._decoding: Iterator[VideoFrame] = iter(())
        self._container: Any = None
        self._number, self._last = -1, Image.new("RGB", (1, 1))

    def frame(self, number: int) -> Image.Image:
        if number == self._number:
            return self._last
        with _named(self.path):
            found = None
            if self._container is not None and self._number < number <= self._number + NEAR:
                # frames shown at one time: only those that are still to come are passed over
                before = number - max(bisect_left(self._shown, self._shown[number]), self._number + 1)
                found = next(islice((image for image in self._decoding if image.pts == self._shown[number]), before, None), None)
            if found is None:
                self.close()
                self._container = open_container(self.path)
                self._container.streams.video[
                    0
                ].thread_type = "NONE"  # decoding ahead on all cores would take them from the model
                found, self._decoding = decode_from(self._container, self._shown, number)
            self._number, self._last = number, turned(found)
            return self._last

    def close(self) -> None:
        """Let go of the file; the next frame opens it again."""
        self._decoding, self._number = iter(()), -1
        if self._container is not None:
            self._container.close()
            self._container = None


class FrameFolder(Video):
    """A folder of pictures, each a frame, in order of their names; numbers in them count as such, so that `frame_10` follows `frame_9`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
        if not found:
            raise ValueError(f"{path}: holds no frame ({', '.join(SUFFIXES)})")
        found.sort(key=lambda file: (_ordered(file.stem), file.name))
        for first, second in pairwise(found):
            if _ordered(first.stem) == _ordered(second.stem):
                raise ValueError(f"{path}: {first.name} and {second.name} are both frame {first.stem}; remove one")
        self.names = [file.name for file in found]
        self.times = [Fraction(number, FOLDER_RATE) for number in range(len(found))]

    def frame(self, number: int) -> Image.Image:
        return open_image(self.path, self.names[number])


def _ordered(stem: str) -> list[tuple[int, str]]:
    """Return what sorts the names of frames: each text with the number behind it, so that `1` and `001` are one frame."""
    parts = re.split(r"([0-9]+)", stem)
    return [(-1, text) if place % 2 == 0 else (int(text), "") for place, text in enumerate(parts)]


def open_video(path: str | Path) -> VideoFile | FrameFolder:
    """Return the frames of a video file, or of a folder of pictures: a sequence that decodes a frame when it is asked for.

    Raises `FileNotFoundError`, or `ValueError` naming a file that is not a video, or a folder without frames.
    """
    path = Path(path)
    if path.is_dir():
        return FrameFolder(path)
    if path.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{path}: not a video by its name ({', '.join(CONTAINERS)}), nor a folder of frames")
    return VideoFile(path)


def is_video(path: Path) -> bool:
    """Return whether `open_video` would take it, by its name alone."""
    return path.is_dir() or path.suffix.lower() in CONTAINERS


class VideoWriter:
    """An mp4 (H.264) of RGB frames of one size, each at a time of its own; without sound. Use it as a context manager."""

    def __init__(self, path: Path, rate: Fraction | int = FOLDER_RATE) -> None:
        import av

        self.container = av.open(str(path), "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=rate)
        self.stream.pix_fmt = "yuv420p"  # what every player shows
        self.stream.options = {"crf": "18"}
        self.stream.time_base = Fraction(1, _TICKS)
        self.stream.codec_context.time_base = Fraction(1, _TICKS)
        self.size: tuple[int, int] | None = None

    def add(self, image: Image.Image, time: Fraction) -> None:
        """Encode a frame that is shown `time` seconds after the first; times rise. Odd sides lose their last row or column: H.264 has
        even ones."""
        import av

        pixels = np.asarray(image)[: image.height // 2 * 2, : image.width // 2 * 2]
        if self.size is None:
            self.size = pixels.shape[1], pixels.shape[0]
            self.stream.width, self.stream.height = self.size
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
        frame.pts, frame.time_base = round(time * _TICKS), Fraction(1, _TICKS)
        self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.container.mux(self.stream.encode())
        self.container.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: not a readable video: {error}") from error
