"""The page of `python -m ans demo`: what its buttons do, over its own HTTP interface and in headless Chromium.

Needs the extra: `pip install '.[demo]' playwright`; what is not installed is skipped.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `demo` is not installed: pip install '.[demo]'")

from ans.cli.demo import models
from ans.data.videos import VideoWriter, open_video
from ans.model.segmenter import Segmenter
from ans.painting import paint
from ans.serving import demo
from tests.serving.test_serve import TINY, WORDS, picture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return Segmenter.from_pretrained(TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own data: one photograph with one object, and one line that cannot be used."""
    folder = tmp_path_factory.mktemp("data") / "mine"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    picture().save(folder / "images" / "one.png")
    Image.fromarray(np.asarray(picture())[..., 0] > 200).save(folder / "masks" / "one.png")
    lines = [
        '{"image": "one.png", "mask": "one.png", "text": "my disc"}',
        '{"image": "two.png", "mask": "one.png", "text": "no"}',
    ]
    (folder / "expressions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_what_is_shown_is_what_the_model_answers(model: Segmenter) -> None:
    image = picture()
    shown, rows = demo.segmented(model, image, "\n".join([*WORDS, "", "a zebra"]), "80,45\n10,30,40,60\n", 24)
    found = model.segment([image], [[*WORDS, "a zebra"]], 24)[0]
    places = demo.read_places("80,45\n10,30,40,60", image)
    masks = [*(one.mask for one in found), *model.segment_at([image], [places])[0]]
    expected = np.asarray(paint(image, masks, [*WORDS, "a zebra", *map(str, places)]))
    assert np.asarray(shown).shape == expected.shape and (np.asarray(shown) != expected).any(2).sum() <= 4
    assert [row[0] for row in rows] == [*WORDS, "a zebra", "point 80,45", "box 10,30,40,60", "no token for: zebra"]
    for text, message in (("1,2,3", "1,2,3: expected x,y or"), ("500,1", "outside the image"), ("a,b", "a,b: expected")):
        with pytest.raises(ValueError, match=message):
            demo.read_places(text, image)
    with pytest.raises(ValueError, match="say what to look for"):
        demo.segmented(model, image, " ", "", 24)


def test_a_drawn_region_is_described(model: Segmenter) -> None:
    image = picture()
    disc = np.asarray(image)[..., 0] > 200
    layer = Image.fromarray(np.dstack([np.full((90, 120, 3), 255, np.uint8), np.where(disc, 255, 0).astype(np.uint8)]))
    drawing = {"background": image.convert("RGBA"), "layers": [layer], "composite": None}
    _, rows = demo.described(model, drawing, "", 24)
    assert rows == [["what is drawn over", f"{disc.mean():.1%}", model.describe([image], [[disc]], 24)[0][0]]]
    with pytest.raises(ValueError, match="draw over a region, or point at one"):
        demo.described(model, drawing | {"layers": []}, "", 24)


def test_clicks_become_points_and_boxes() -> None:
    def click(places: str, kind: str, x: int, y: int) -> str:
        return demo.clicked(places, kind, SimpleNamespace(index=(x, y)))

    one = click("", demo.POINT, 3, 4)
    half = click(one, demo.BOX, 30, 10)
    whole = click(half, demo.BOX, 10, 20)
    assert (one, whole) == ("3,4", "3,4\n10,10,30,20") and len(demo.read_places(whole, picture())) == 2
    with pytest.raises(ValueError, match="30,10;: expected"):
        demo.read_places(half, picture())


def test_a_clip_is_followed(model: Segmenter, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        for number in range(2):
            writer.add(picture(80 - number), Fraction(number, 24))
    path, rows = demo.followed(model, str(tmp_path / "clip.mp4"), "red circle", 24)
    assert len(open_video(Path(path))) == 2 and rows[0][0] == "red circle" and rows[0][1].endswith(" of 2")


def test_examples_and_models(data: Path, tmp_path: Path) -> None:
    assert all(re.fullmatch(r"(the \w+ \w+\n?)+", text) for _, text in demo.drawn(3))
    ((image, text),) = demo.from_own(data, 5)
    assert text == "my disc" and np.array_equal(np.asarray(image), np.asarray(picture()))
    for name in ("base", "full"):
        (tmp_path / "variants" / name).mkdir(parents=True)
        (tmp_path / "variants" / name / "variant.json").write_text("{}")
    full, other = tmp_path / "variants" / "full", tmp_path / "full"
    assert models(full, [other]) == {"full": full, "base": tmp_path / "variants" / "base", str(other): other}
    assert models(other, []) == {"full": other} and demo.is_tiny(Path(TINY)) and not demo.is_tiny(tmp_path)


@pytest.fixture(scope="module")
def address(data: Path) -> Iterator[str]:
    command = [
        sys.executable,
        "-u",
        "-m",
        "ans",
        "demo",
        "--model",
        TINY,
        "--data",
        str(data),
        "--port",
        "7899",
        "--also",
        TINY + "/.",
    ]
    process = subprocess.Popen([*command, "--max-new-tokens", "24"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield next(match[1] for line in process.stdout if (match := re.search(r"(http://\S+)", line)))
    process.terminate()
    process.wait(30)


@pytest.mark.slow
def test_its_http_interface(address: str, model: Segmenter, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    picture().save(tmp_path / "image.png")
    client = Client(address, verbose=False)
    file = handle_file(str(tmp_path / "image.png"))
    shown, _, answers = client.predict(file, "\n".join(WORDS), "80,45", "tiny", "none", api_name="/segment")
    expected, rows = demo.segmented(model, picture(), "\n".join(WORDS), "80,45", 24)
    assert np.array_equal(np.asarray(Image.open(shown).convert("RGB")), np.asarray(expected))
    assert answers["data"] == [["tiny", *row] for row in rows]
    drawing = {"background": file, "layers": [], "composite": file, "id": None}
    _, _, captions = client.predict(drawing, "10,30,40,60", "tiny", "tiny", api_name="/describe")
    assert len(captions["data"]) == 2 and captions["data"][0] == captions["data"][1]
    with pytest.raises(Exception, match="say what to look for"):
        client.predict(file, "", "", "tiny", "none", api_name="/segment")
    with pytest.raises(Exception, match="choose a clip"):
        client.predict(None, "", "tiny", "none", api_name="/clip")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(address: str) -> None:
    """An example is chosen and segmented; a click on the image adds a point; nothing outside is asked; a phone shows all of it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        wrong, outside = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda of: outside.append(of.url) if not of.url.startswith((address.rstrip("/"), "data:", "blob:")) else None,
        )
        page.goto(address)
        page.get_by_text("my disc").first.click()
        page.get_by_label("Expressions, one a line").first.wait_for()
        page.wait_for_function("document.querySelector('textarea').value === 'my disc'")
        page.locator(".image-frame img, [data-testid=image] img").first.click()
        page.wait_for_function("/^\\d+,\\d+$/.test(document.querySelectorAll('textarea')[1].value)")
        page.get_by_role("button", name="Segment").first.click()
        page.get_by_text("no token for: my").first.wait_for(state="attached")
        phone = browser.new_page(viewport={"width": 390, "height": 844})
        phone.goto(address)
        phone.get_by_role("button", name="Segment").first.wait_for()
        assert phone.evaluate("document.documentElement.scrollWidth") == 390
        assert wrong == [] and outside == []
        browser.close()
