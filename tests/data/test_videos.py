"""Videos frame by frame: every frame is the one that its number means, however it was coded, and every damage is named."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ans.data.images import read_frame
from ans.data.videos import VideoFile, VideoWriter, is_video, open_video

TIMES = [Fraction(t, 1000) for t in (0, 40, 120, 130, 200, 500, 540, 700, 1000, 1040, 1100, 1300)]
"""As a phone might take them: at no rate."""


def picture(number: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Grey, as bright as its number says."""
    return Image.new("RGB", size, (20 + 15 * number,) * 3)


def bright(image: Image.Image) -> int:
    return round((np.asarray(image).mean() - 20) / 15)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with VideoWriter(path) as writer:
        for number, time in enumerate(TIMES):
            writer.add(picture(number), time)
    return path


def test_a_file_is_read_by_number(clip: Path) -> None:
    video = open_video(clip)
    assert len(video) == len(TIMES) == len(video.times)
    assert [bright(image) for image in video] == list(range(len(TIMES)))
    for number in (7, 8, 8, 2, 3, 11, 0, -1):
        assert bright(video[number]) == number % len(TIMES)
        assert np.array_equal(np.asarray(video[number]), np.asarray(read_frame(clip, number % len(TIMES))))
    assert [bright(image) for image in video[2:5]] == [2, 3, 4]
    with pytest.raises(IndexError, match="has 12 frames, there is no number 12"):
        video[12]


def test_written_times_are_read_back(clip: Path) -> None:
    with av.open(str(clip)) as container:
        kinds = {str(frame.pict_type) for frame in container.decode(video=0)}
    assert len(kinds) > 1, "frames that are coded after others show whether numbers go by time"
    assert open_video(clip).times == TIMES


def test_one_after_the_other_a_file_is_opened_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, opened = VideoFile(clip), []
    original = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: (opened.append(a), original(*a, **k))[1])
    assert [bright(video[number]) for number in (0, 1, 1, 2, 3)] == [0, 1, 1, 2, 3]
    assert len(opened) == 1
    video.close()
    assert bright(video[4]) == 4 and len(opened) == 2


def test_a_turned_video_is_upright(clip: Path, tmp_path: Path) -> None:
    """The display matrix of a video that was held upright, written into the header: 48 x 32 becomes 32 x 48."""
    data = bytearray(clip.read_bytes())
    upright = b"\x00\x01\x00\x00" + bytes(12) + b"\x00\x01\x00\x00" + bytes(12) + b"\x40\x00\x00\x00"
    place = data.index(upright, data.index(b"tkhd"))
    one, minus = b"\x00\x01\x00\x00", b"\xff\xff\x00\x00"
    data[place : place + 36] = bytes(4) + one + bytes(4) + minus + bytes(16) + b"\x40\x00\x00\x00"
    (tmp_path / "turned.mp4").write_bytes(data)
    video = open_video(tmp_path / "turned.mp4")
    assert video[3].size == (32, 48) == read_frame(tmp_path / "turned.mp4", 3).size


def test_folders_go_by_number_or_by_name(tmp_path: Path) -> None:
    for name, value in (("2.png", 1), ("10.png", 2), ("1.png", 0)):
        picture(value).save(tmp_path / name)
    (tmp_path / ".3.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("none")
    assert [bright(image) for image in open_video(tmp_path)] == [0, 1, 2]
    for name, value in (("a_10.png", 5), ("a_9.png", 4), ("a.png", 3)):
        picture(value).save(tmp_path / name)
    assert [bright(image) for image in open_video(tmp_path)] == [0, 1, 2, 3, 4, 5]
    picture(0).save(tmp_path / "001.png")
    with pytest.raises(ValueError, match="001.png and 1.png are both frame 001"):
        open_video(tmp_path)
    (tmp_path / "001.png").unlink()
    picture(0).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg and a.png are both frame a"):
        open_video(tmp_path)


def test_odd_sides_lose_a_pixel(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        writer.add(picture(1, (33, 21)), Fraction(0))
    assert open_video(tmp_path / "odd.mp4")[0].size == (32, 20)


def test_what_is_wrong_is_named(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, error, message in (
        (tmp_path / "gone.mp4", FileNotFoundError, "no such video"),
        (tmp_path / "empty", ValueError, "holds no frame"),
        (tmp_path / "clip.gif", ValueError, "not a video by its name"),
    ):
        with pytest.raises(error, match=f"{path}: {message}"):
            open_video(path)
    (tmp_path / "text.mp4").write_text("#EXTM3U\nhttp://example.org/x.mp4")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:300])
    for name in ("text.mp4", "cut.mp4"):
        with pytest.raises(ValueError, match=f"{name}: not a readable video"):
            open_video(tmp_path / name)
    assert is_video(tmp_path) and is_video(Path("a.MOV")) and not is_video(Path("a.png"))
