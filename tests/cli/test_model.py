"""`python -m ans`: the same answers as the `Segmenter` gives, and every mistake named."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.cli import main
from ans.cli.describe import read_mask
from ans.cli.videos import palette
from ans.data.videos import VideoWriter, open_video
from ans.errors import run
from ans.model.places import Place
from ans.model.segmenter import Segmenter
from ans.painting import NARROWEST, paint

TINY = "weights/tiny"
WORDS = ["red circle", "blue square on the left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image.png (120 x 90 pixels: a red disc and a blue square on grey), disc.png (its mask), empty.png, small.png, text.png."""
    folder = tmp_path_factory.mktemp("cli")
    rows, columns = np.mgrid[:90, :120]
    disc = (rows - 45) ** 2 + (columns - 80) ** 2 < 20**2
    pixels = np.full((90, 120, 3), 128, np.uint8)
    pixels[disc], pixels[30:60, 10:40] = (230, 20, 20), (20, 20, 230)
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(disc).save(folder / "disc.png")
    Image.fromarray(np.zeros_like(disc)).save(folder / "empty.png")
    Image.fromarray(disc[:50]).save(folder / "small.png")
    (folder / "text.png").write_text("no image")
    (folder / "nothing").mkdir()
    return folder


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return Segmenter.from_pretrained(TINY)


def test_damaged_metadata_is_no_obstacle(folder: Path, capsys) -> None:
    for image in sorted(Path("tests/cases/exif_damaged/kitchen/images").iterdir()):
        main(["segment", str(image), "red circle", "-o", str(folder / "out.png"), "--model", TINY])
        assert "wrote" in capsys.readouterr().out


def test_segment_writes_what_the_segmenter_finds(folder: Path, model: Segmenter, capsys) -> None:
    out, masks = folder / "new" / "out.png", folder / "masks"
    main(["segment", str(folder / "image.png"), *WORDS, "-o", str(out), "--masks", str(masks), "--model", TINY])
    said = capsys.readouterr().out.splitlines()
    image = Image.open(folder / "image.png").convert("RGB")
    found = model.segment([image], [WORDS], 128)[0]
    for number, (words, answer) in enumerate(zip(WORDS, found, strict=True)):
        assert np.array_equal(np.asarray(Image.open(masks / f"{number}.png")), answer.mask)
        assert said[number].startswith(f"{words}: ") and answer.answer in said[number]
    assert said[-1] == f"wrote {out}"
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(paint(image, [answer.mask for answer in found], WORDS)))
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.png"], "a temporary file was left"


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    """A folder of six frames in which the disc moves; also clip.mp4, at times of no rate."""
    path = folder / "clip"
    path.mkdir()
    with VideoWriter(folder / "clip.mp4") as writer:
        for number in range(6):
            rows, columns = np.mgrid[:60, :80]
            pixels = np.full((60, 80, 3), 128, np.uint8)
            pixels[(rows - 30) ** 2 + (columns - 15 - 10 * number) ** 2 < 12**2] = (230, 20, 20)
            Image.fromarray(pixels).save(path / f"{5 * number:05d}.png")
            writer.add(Image.fromarray(pixels), Fraction(number**2, 10))
    return path


@pytest.mark.slow
def test_a_video_is_segmented_frame_by_frame(folder: Path, clip: Path, model: Segmenter, capsys) -> None:
    out, masks, listed = folder / "out.mp4", folder / "palettes", folder / "masks.json"
    common = [*WORDS, "-o", str(out), "--model", TINY, "--propagation", "none", "--frames-read", "3"]
    main(["segment", str(clip), *common, "--masks", str(masks)])
    said = capsys.readouterr().out.splitlines()
    found = list(model.segment_video(open_video(clip), WORDS, propagation="none", frames_read=3, max_new_tokens=128))
    assert sorted(path.name for path in masks.iterdir()) == [f"{5 * number:05d}.png" for number in range(6)]
    for number, answers in enumerate(found):
        values = np.asarray(Image.open(masks / f"{5 * number:05d}.png"))
        assert np.array_equal(values, np.asarray(palette([answer.mask for answer in answers])))
        assert np.array_equal(values == 1, answers[0].mask)
    seen = sum(answers[0].mask.any() for answers in found)
    assert seen and said[0].startswith(f"red circle: in {seen} of 6 frames") and said[-1] == f"wrote {out}"
    assert len(open_video(out)) == 6
    main(["segment", str(folder / "clip.mp4"), *common, "--masks", str(listed)])
    content = json.loads(listed.read_text())
    clip_found = model.segment_video(
        open_video(folder / "clip.mp4"), WORDS, propagation="none", frames_read=3, max_new_tokens=128
    )
    for number, answers in enumerate(clip_found):
        for one, answer in zip(content["expressions"], answers, strict=True):
            assert np.array_equal(coco.decode(one["masks"][number]), answer.mask)
    assert (content["frames"], [one["expression"] for one in content["expressions"]]) == (6, WORDS)
    assert open_video(out).times == [Fraction(number**2, 10) for number in range(6)]


def test_where_masks_overlap_the_first_is_shown() -> None:
    first, second = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    first[:, :2], second[:, 1:3] = True, True
    assert np.array_equal(np.asarray(palette([first, second])), [[1, 1, 2, 0]] * 2)


def test_words_that_the_model_lacks_are_said(folder: Path, capsys) -> None:
    main(["segment", str(folder / "image.png"), "the left cup", "red cup", "-o", str(folder / "out.png"), "--model", TINY])
    assert "weights/tiny has no word for cup. The tiny model knows coloured shapes" in capsys.readouterr().err
    main(["segment", str(folder / "image.png"), "red circle", "-o", str(folder / "out.png"), "--model", TINY])
    assert capsys.readouterr().err == ""


def test_describe_says_what_the_segmenter_says(folder: Path, model: Segmenter, capsys) -> None:
    mask = str(folder / "disc.png")
    main(["describe", str(folder / "image.png"), mask, mask, "--model", TINY])
    image, region = Image.open(folder / "image.png").convert("RGB"), np.asarray(Image.open(mask))
    caption = model.describe([image], [region[None]], 128)[0][0]
    assert caption and capsys.readouterr().out.splitlines() == [f"{mask}: {caption}"] * 2


def test_what_is_pointed_at(folder: Path, model: Segmenter, capsys) -> None:
    """Words behind an option, a point and a box, one mask each; the same places described, beside a mask."""
    path, out, masks = folder / "image.png", folder / "pointed.png", folder / "pointed"
    point, box, disc = Place(points=[(80, 45)]), Place(box=(10, 30, 40, 60)), np.asarray(Image.open(folder / "disc.png"))
    pointing = ["--point", "80,45", "--box", "10,30,40,60", "--model", TINY]
    main(["segment", str(path), "-o", str(out), WORDS[0], *pointing, "--masks", str(masks)])
    said = capsys.readouterr().out.splitlines()
    read = model.read([Image.open(path).convert("RGB")])
    words, (at_point, in_box) = model.segment(read, [WORDS[:1]], 128)[0][0], model.segment_at(read, [[point, box]])[0]
    assert not np.array_equal(at_point, in_box)
    for number, mask in enumerate((words.mask, at_point, in_box)):
        assert np.array_equal(np.asarray(Image.open(masks / f"{number}.png")), mask)
    assert [line.partition(":")[0] for line in said[:3]] == [WORDS[0], "point 80,45", "box 10,30,40,60"]
    main(["segment", str(path), "-o", str(out), "--box", "10,30,40,60", "--model", TINY])
    assert capsys.readouterr().out == f"box 10,30,40,60: {in_box.mean():.1%} of the image\nwrote {out}\n"
    main(["describe", str(path), str(folder / "disc.png"), *pointing])
    captions = model.describe(read, [[disc, point, box]], 128)[0]
    names = [str(folder / "disc.png"), "point 80,45", "box 10,30,40,60"]
    assert capsys.readouterr().out.splitlines() == [f"{name}: {one}" for name, one in zip(names, captions, strict=True)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--point", "80"], "argument --point: '80': expected 2 numbers"),
        (["--point", "80,left"], "argument --point: '80,left': expected 2 numbers"),
        (["--box", "1,2,3"], "argument --box: '1,2,3': expected 4 numbers"),
        (["--box", "9,2,3,4"], "argument --box: box 9,2,3,4: has no area"),
    ],
)
def test_what_is_no_place(option: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["describe", "image.png", *option])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_paint_colours_only_the_masks() -> None:
    image = Image.new("RGB", (40, 30), (100, 100, 100))
    mask = np.zeros((30, 40), bool)
    mask[5:15, 5:15] = True
    pixels = np.asarray(paint(image, [mask], ["a thing"]))
    changed = (pixels[:30, :40] != 100).any(2)
    assert np.array_equal(changed, mask)
    assert tuple(pixels[5, 5]) == (0, 114, 178) and tuple(pixels[10, 10]) == (55, 106, 135), "45 % of the colour inside"
    assert len(pixels) > 30 and (pixels[30:] != 255).any(), "the legend"


def test_the_legend_wraps_long_texts_and_takes_any_script(caplog: pytest.LogCaptureFixture) -> None:
    image, mask = Image.new("RGB", (300, 30)), np.zeros((30, 300), bool)

    def legend(text: str) -> np.ndarray:
        return np.asarray(paint(image, [mask], [text]))[30:, 24:, 0] < 128

    line = len(legend("a"))
    long = legend("the cup that stands behind the red plate " * 4)
    assert len(long) >= 4 * line and all(long[top : top + line].any() for top in range(0, len(long), line))
    assert len(legend("x" * 200)) > 3 * line and not legend("x" * 200)[:, -2:].any(), "a word that is longer than a line"
    assert not np.array_equal(legend("чашка"), legend("кошка")), "not empty boxes"
    assert not caplog.records
    legend("\U000e0ffe")  # of no script
    assert "no font is installed for" in caplog.text
    assert NARROWEST == paint(Image.new("RGB", (8, 8)), [np.zeros((8, 8), bool)], ["a"]).width
    assert Image.new("RGB", (8, 8)).size == paint(Image.new("RGB", (8, 8)), [], []).size


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_masks_of_every_kind_of_file(mode: str, tmp_path: Path) -> None:
    """Not black is inside, whatever its value."""
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:5] = True
    values = mask.astype(np.uint8)
    if mode == "P":
        picture = Image.fromarray(values, "P")
        picture.putpalette([0, 0, 0, 9, 0, 0])
    elif mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16))
    else:
        picture = Image.fromarray(255 * values).convert(mode)
    picture.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", (8, 6)), mask)
    if mode == "RGB":
        picture.save(tmp_path / "mask.jpg")
        with pytest.raises(ValueError, match=r"mask\.jpg is a JPEG"):
            read_mask(tmp_path / "mask.jpg", (8, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "gone.png", "a cup", "-o", "o.png"], "gone.png: no such image"),
        (["segment", "text.png", "a cup", "-o", "o.png"], "text.png: not a readable image"),
        (["segment", "image.png", " ", "-o", "o.png"], "EXPRESSION: one is empty"),
        (["segment", "image.png", "a cup", "-o", "picture"], "picture: name it .png or .jpg"),
        (["segment", "image.png", "a cup", "-o", "o.png", "--model", "nowhere"], "nowhere: no model there"),
        (["segment", "image.png", "a cup", "-o", "o.png", "--max-new-tokens", "0"], "--max-new-tokens: must be at least 1"),
        (["segment", "gone.mp4", "a cup", "-o", "o.mp4"], "gone.mp4: no such video"),
        (["segment", "nothing", "a cup", "-o", "o.mp4"], "nothing: holds no frame"),
        (["segment", "nothing", "a cup", "-o", "o.png"], "o.png: the result of a video is one; name it .mp4"),
        (["segment", "nothing", "a cup", "-o", "o.mp4", "--masks", "o.png"], "--masks o.png: name a .json"),
        (["segment", "image.png", "-o", "o.png"], "EXPRESSION: there is none; say what to look for, or point at it"),
        (["segment", "image.png", "-o", "o.png", "--point", "120,3"], "point 120,3: outside the image, which is 120 x 90"),
        (["segment", "nothing", "-o", "o.mp4", "--point", "1,3"], "--point, --box: nothing is a video"),
        (["describe", "image.png"], "MASK: there is none; name one, or point at a region"),
        (["describe", "image.png", "--box", "1,2,3,91"], "box 1,2,3,91: outside the image, which is 120 x 90"),
        (["describe", "image.png", "gone.png"], "gone.png: no such mask"),
        (["describe", "image.png", "text.png"], "text.png: not a readable image"),
        (["describe", "image.png", "empty.png"], "empty.png: every pixel is 0"),
        (["describe", "image.png", "small.png"], "small.png: is 120 x 50 pixels, the image 120 x 90"),
    ],
)
def test_mistakes_are_named(folder: Path, arguments: list[str], message: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        run(main, arguments)
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith(f"error: {message}")
    assert not (folder / "o.png").exists()


@pytest.mark.slow
def test_usage_needs_no_framework() -> None:
    done = subprocess.run([sys.executable, "-m", "ans", "segment", "--help"], capture_output=True, text=True, check=True)
    assert "EXPRESSION" in done.stdout and "models/variants/full" in done.stdout
    code = "import sys, ans.cli; print(*({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
    wrong = subprocess.run([sys.executable, "-m", "ans", "segment", "a.png"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "EXPRESSION" in wrong.stderr
