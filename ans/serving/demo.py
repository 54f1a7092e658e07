"""The page of `python -m ans demo`: what `Segmenter` does, by hand, with one model or two side by side."""

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ans.data.images import open_image
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import own
from ans.data.videos import VideoWriter, open_video
from ans.model.places import Place
from ans.model.segmenter import Segmenter
from ans.painting import paint
from ans.toy.scenes import Description, make_scene, refers, render

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would ask the internet, and is read when gradio is imported
import gradio as gr  # noqa: E402

ALONE = "none"
"""The second model, where there is none."""
POINT, BOX = "a point", "two corners of a box"
SCENES, OWN = 3, 6
"""Examples that are drawn, and taken from a user's own data."""

Example = tuple[Image.Image, str]
"""An image, and expressions, one a line."""
Load = Callable[[str], Segmenter]


def make_page(folders: dict[str, Path], load: Callable[[Path], Segmenter], data: Path | None, max_new_tokens: int) -> gr.Blocks:
    """Return the page. `folders`: name -> model; the first is the one that is shown by default. `data`: a folder of the user's own
    data, or None."""

    @lru_cache(maxsize=2)
    def cached(name: str) -> Segmenter:
        return load(folders[name])

    names = list(folders)
    examples = [*drawn(SCENES), *(from_own(data, OWN) if data else [])]

    with gr.Blocks(title="ANS", analytics_enabled=False) as page:
        gr.Markdown("# ANS: segment by words, describe regions")
        if any(is_tiny(path) for path in folders.values()):
            gr.Markdown(
                "**A tiny model knows coloured shapes and no photographs.** For photographs start the demo with `--model` and a model "
                "of a real preset."
            )
        with gr.Row():
            first = gr.Dropdown(names, value=names[0], label="Model")
            second = gr.Dropdown([ALONE, *names], value=ALONE, label="Side by side with")
        with gr.Tab("Image"):
            _image_tab(cached, max_new_tokens, examples, first, second)
        with gr.Tab("Describe"):
            _describe_tab(cached, max_new_tokens, examples, first, second)
        with gr.Tab("Clip"):
            _clip_tab(cached, max_new_tokens, first, second)
    return page


def _image_tab(load: Load, max_new_tokens: int, examples: Sequence[Example], first: gr.Dropdown, second: gr.Dropdown) -> None:
    """Lay out: masks of what expressions name and of what is pointed at."""

    def segment(image: Image.Image | None, words: str, places: str, first: str, second: str) -> tuple[Any, Any, list[list[str]]]:
        pictures, rows = _each(lambda model: segmented(model, image, words, places, max_new_tokens), load, first, second)
        return *pictures, rows

    with gr.Row():
        with gr.Column(min_width=280):
            image = gr.Image(
                type="pil", format="png", label="Image; a click adds a place", sources=["upload", "webcam", "clipboard"]
            )
            words = gr.Textbox(label="Expressions, one a line", lines=3, placeholder="the red circle")
            with gr.Row():
                kind = gr.Radio([POINT, BOX], value=POINT, label="A click is")
                places = gr.Textbox(label="Points x,y and boxes x0,y0,x1,y1, one a line", lines=2)
            run = gr.Button("Segment", variant="primary")
        with gr.Column(min_width=280):
            outputs = [
                gr.Image(format="png", label="Masks"),
                gr.Image(format="png", label="Masks, second model", visible=False),
            ]
            answers = gr.Dataframe(headers=["model", "what", "share of the image", "answer"], wrap=True, label="Answers")
    image.select(clicked, [places, kind], places, api_visibility="private")
    run.click(segment, [image, words, places, first, second], [*outputs, answers], api_name="segment")
    gr.Examples([[one, text] for one, text in _files(examples)], [image, words], label="Examples", api_visibility="private")


def _describe_tab(load: Load, max_new_tokens: int, examples: Sequence[Example], first: gr.Dropdown, second: gr.Dropdown) -> None:
    """Lay out: captions of regions that are drawn over or pointed at."""

    def describe(drawing: dict[str, Any] | None, places: str, first: str, second: str) -> tuple[Any, Any, list[list[str]]]:
        pictures, rows = _each(lambda model: described(model, drawing, places, max_new_tokens), load, first, second)
        return *pictures, rows

    with gr.Row():
        with gr.Column(min_width=280):
            drawing = gr.ImageEditor(type="pil", format="png", label="Draw over a region", layers=False, transforms=())
            spots = gr.Textbox(label="or point at it: x,y or x0,y0,x1,y1, one a line", lines=2)
            ask = gr.Button("Describe", variant="primary")
        with gr.Column(min_width=280):
            regions = [
                gr.Image(format="png", label="Regions"),
                gr.Image(format="png", label="Regions, second model", visible=False),
            ]
            captions = gr.Dataframe(headers=["model", "region", "share of the image", "caption"], wrap=True, label="Captions")
    ask.click(describe, [drawing, spots, first, second], [*regions, captions], api_name="describe")
    gr.Examples([[one] for one, _ in _files(examples)], [drawing], label="Examples", api_visibility="private")


def _clip_tab(load: Load, max_new_tokens: int, first: gr.Dropdown, second: gr.Dropdown) -> None:
    """Lay out: masks in every frame of a clip."""

    def clip(video: str | None, words: str, first: str, second: str) -> tuple[Any, Any, list[list[str]]]:
        pictures, rows = _each(lambda model: followed(model, video, words, max_new_tokens), load, first, second)
        return *pictures, rows

    gr.Markdown("Needs a model of a real preset that learnt from videos, as the released Sa2VA did.")
    with gr.Row():
        with gr.Column(min_width=280):
            video = gr.Video(label="Clip")
            said = gr.Textbox(label="Expressions, one a line", lines=2)
            follow = gr.Button("Segment", variant="primary")
        with gr.Column(min_width=280):
            clips = [gr.Video(label="Masks"), gr.Video(label="Masks, second model", visible=False)]
            lines = gr.Dataframe(headers=["model", "what", "frames with a mask", "answer"], wrap=True, label="Answers")
    follow.click(clip, [video, said, first, second], [*clips, lines], api_name="clip")


Shown = tuple[Any, list[list[str]]]
"""A picture or a video, and rows of a table without the model's name."""


def segmented(model: Segmenter, image: Image.Image | None, words: str, places: str, max_new_tokens: int) -> Shown:
    """Return the image with the masks, and a row per expression and place. Raises `ValueError` for what cannot be asked."""
    if image is None:
        raise ValueError("choose an image")
    texts, spots = _lines(words), read_places(places, image)
    if not texts and not spots:
        raise ValueError("say what to look for, or click on it")
    read = model.read([image])
    found = model.segment(read, [texts], max_new_tokens)[0]
    pointed = model.segment_at(read, [spots])[0]
    masks = [*(one.mask for one in found), *pointed]
    said = [*(one.answer for one in found), *("" for _ in spots)]
    names = [*texts, *map(str, spots)]
    rows = [[name, f"{mask.mean():.1%}", answer] for name, mask, answer in zip(names, masks, said, strict=True)]
    if unknown := model.unknown_words(words):
        rows.append([f"no token for: {', '.join(unknown)}", "", "the tiny model knows coloured shapes alone"])
    return paint(image, masks, names), rows


def described(model: Segmenter, drawing: dict[str, Any] | None, places: str, max_new_tokens: int) -> Shown:
    """Return the image with the regions, and a row with the caption of each: what was drawn over, and what is pointed at."""
    if not drawing or drawing["background"] is None:
        raise ValueError("choose an image")
    image = drawing["background"].convert("RGB")
    regions: list[tuple[str, np.ndarray]] = []
    inside = [np.asarray(layer.convert("RGBA").resize(image.size))[..., 3] > 0 for layer in drawing["layers"]]
    if inside and (mask := np.any(inside, axis=0)).any():
        regions.append(("what is drawn over", mask))
    spots = read_places(places, image)
    read = model.read([image])
    regions += zip(map(str, spots), model.segment_at(read, [spots])[0], strict=True)
    if not regions:
        raise ValueError("draw over a region, or point at one")
    for name, mask in regions:
        if not mask.any():
            raise ValueError(f"{name}: the mask decoder finds nothing there")
    captions = model.describe(read, [[mask for _, mask in regions]], max_new_tokens)[0]
    rows = [[name, f"{mask.mean():.1%}", caption] for (name, mask), caption in zip(regions, captions, strict=True)]
    return paint(image, [mask for _, mask in regions], [f"{name}: {caption}" for name, _, caption in rows]), rows


def followed(model: Segmenter, video: str | None, words: str, max_new_tokens: int) -> Shown:
    """Return a video with the masks, and a row per expression."""
    texts = _lines(words)
    if video is None or not texts:
        raise ValueError("choose a clip and say what to look for")
    frames, seen, said = open_video(Path(video)), [0] * len(texts), [""] * len(texts)
    path = Path(tempfile.mkdtemp(prefix="ans-demo-")) / "masks.mp4"
    with VideoWriter(path) as writer:
        for number, answers in enumerate(model.segment_video(frames, texts, max_new_tokens=max_new_tokens)):
            writer.add(paint(frames[number], [one.mask for one in answers], texts), frames.times[number])
            for i, one in enumerate(answers):
                seen[i], said[i] = seen[i] + bool(one.mask.any()), one.answer
    return str(path), [[text, f"{n} of {len(frames)}", answer] for text, n, answer in zip(texts, seen, said, strict=True)]


def read_places(text: str, image: Image.Image) -> list[Place]:
    """Read one place per line. Raises `ValueError` naming the line, also for a place outside of the image."""
    places = []
    for line in _lines(text):
        try:
            numbers = [float(part) for part in line.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 4):
            raise ValueError(f"{line}: expected x,y or x0,y0,x1,y1")
        places.append(Place(points=[numbers]) if len(numbers) == 2 else Place(box=numbers))
        places[-1].check(image.height, image.width)
    return places


def drawn(count: int) -> list[Example]:
    """Return scenes as in the synthetic world, with an expression for each object that colour and shape alone tell from the others."""
    found = []
    for number in range(count):
        scene, rng = make_scene(seed=1, split="val", index=number, shift=0.0)
        descriptions = [Description(colour=shape.colour, shape=shape.shape) for shape in scene.shapes]
        texts = [f"the {one.phrase}" for one in descriptions if refers(scene, one) is not None]
        found.append((Image.fromarray(render(scene, 0.0, rng)[0]), "\n".join(texts)))
    return found


def from_own(folder: Path, count: int) -> list[Example]:
    """Return the first images of own data that have an expression. Raises as the reader does."""
    root, found = folder.resolve().parent, []
    for task in own.plan(root, folder.resolve().name, "own"):
        for record in () if isinstance(task, Skipped) else own.read_one(root, task):
            if not isinstance(record, ImageRecord):
                continue
            if texts := [region.expressions[0].sent for region in record.regions if region.expressions]:
                found.append((open_image(root, record.path), "\n".join(texts)))
        if len(found) >= count:
            break
    return found[:count]


def is_tiny(folder: Path) -> bool:
    """Return whether a folder holds a model of the synthetic world: its tokenizer is smaller than any that knows a language."""
    return (folder / "tokenizer.json").is_file() and (folder / "tokenizer.json").stat().st_size < 100_000


def _each(show: Callable[[Segmenter], Shown], load: Load, first: str, second: str) -> tuple[list[Any], list[list[str]]]:
    """Return the pictures of both models, the second hidden where there is none, and all rows with the models' names."""
    pictures, rows = [], []
    try:
        for name in (first, second):
            picture, found = show(load(name)) if name != ALONE else (None, [])
            pictures.append(picture if name == first and not pictures else gr.update(value=picture, visible=picture is not None))
            rows += [[name, *row] for row in found]
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    return pictures, rows


def clicked(places: str, kind: str, event: gr.SelectData) -> str:
    """Return the places with one more point, or with the first corner of a box, or with its second."""
    x, y = event.index
    lines = _lines(places)
    if kind == BOX and lines and lines[-1].endswith(";"):
        x0, y0 = map(float, lines.pop().removesuffix(";").split(","))
        return "\n".join([*lines, ",".join(f"{value:g}" for value in (min(x, x0), min(y, y0), max(x, x0), max(y, y0)))])
    return "\n".join([*lines, f"{x},{y}" + (";" if kind == BOX else "")])


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _files(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """Return examples as files, which the browser asks for by their paths."""
    folder = Path(tempfile.mkdtemp(prefix="ans-demo-"))
    found = []
    for number, (image, text) in enumerate(examples):
        image.save(folder / f"{number}.png")
        found.append((str(folder / f"{number}.png"), text))
    return found
