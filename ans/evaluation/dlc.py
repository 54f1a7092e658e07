"""DLC-Bench (nvidia/DLC-Bench; Describe Anything): detailed descriptions of regions, judged by a language model question by question.

    annotations.json    COCO's form: images, and annotations with an RLE     images/<file_name>
    qa.json             annotation id -> [{"question", "choices": [[text, score], ...], "type": "positive" or "negative"}]
    class_names.json    annotation id -> what the region is

The judge reads a description and no image. It is any model behind an OpenAI-compatible address; its name and the prompt are part of the
protocol, since the numbers of two judges do not compare. Published ones are those of meta-llama/Meta-Llama-3.1-8B-Instruct.
Prompt, questions, how an answer is read and how scores are averaged follow `evaluation/eval_model_outputs.py` of NVlabs/describe-anything
(Apache 2.0).
"""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ans.data import masks
from ans.data.images import open_image
from ans.data.sources.common import by_id, field, parse_json
from ans.files import replacing
from ans.model.segmenter import Segmenter

PROMPT = """Answer the multiple-choice question based on the text description of an object in an image. You need to follow these rules:
1. Do not output any reasoning. Do not perform correction. Please output exactly one answer from the choices for each question. Do not \
repeat the question.
2. There is no need for exact matching. Please choose the closest option based on the description.

The description is:
{description}

From the description above, please answer the following question with one of the choices:
{question}
"""
RECOGNITION = (
    "Is it likely that the {objects} in the description {are} {name} or {other} of a similar type? Again, It does not have to be an "
    "exact match."
)
SAMPLING = {"temperature": 0.0, "max_tokens": 300, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
LETTERS = "abcde"

Judge = Callable[[str], str]
"""What a judge says to a prompt."""


@dataclass(frozen=True)
class JudgedRegion:
    """A region of the benchmark: its image, its mask (height, width) bool, its class, and the questions about its description."""

    number: str
    image: str
    mask: np.ndarray
    name: str
    questions: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RegionScore:
    """Of a region: the means of what its positive and its negative questions score; None where it has no negative one."""

    recognised: bool
    positive: float
    negative: float | None


def read(folder: Path) -> list[JudgedRegion]:
    """Return the regions that qa.json asks about, in its order. Raises `FileNotFoundError`, or `ValueError` naming what is not as
    published."""
    files = {name: folder / name for name in ("annotations.json", "qa.json", "class_names.json")}
    content = {}
    for name, path in files.items():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; a folder of DLC-Bench has {', '.join(files)} and images/")
        try:
            content[name] = parse_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
    try:
        images = by_id(field(content["annotations.json"], "images", list), "images")
        regions = by_id(field(content["annotations.json"], "annotations", list), "annotations")
        found = []
        for number, questions in content["qa.json"].items():
            region = regions[int(number)]
            image = images[region["image_id"]]
            height, width = field(image, "height", int), field(image, "width", int)
            mask = masks.decode(masks.from_segmentation(region["segmentation"], height, width), height, width).astype(bool)
            if not any(question["type"] == "positive" for question in questions):
                raise ValueError(f"region {number} has no positive question")
            found.append(
                JudgedRegion(number, field(image, "file_name", str), mask, content["class_names.json"][number], questions)
            )
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not as DLC-Bench is published: {error!r:.200}") from error


def describe(
    model: Segmenter, folder: Path, regions: Sequence[JudgedRegion], question: str, max_new_tokens: int
) -> dict[str, str]:
    """Return region -> the model's description."""
    said = {}
    for region in regions:
        image = open_image(folder / "images", region.image)
        ((said[region.number],),) = model.describe([image], [region.mask[None]], max_new_tokens, question)
    return said


def recognition(name: str) -> Mapping[str, Any]:
    """Return the question that comes first: whether the description is of what the region is. Its article and number are as published for
    all classes of the benchmark."""
    several = name.endswith("s") and name != "bus"
    article = "" if several else "an " if name[0].lower() in "aeiou" else "a "
    words = {"objects": "objects", "are": "are", "other": "objects"} if several else {"objects": "object", "are": "is"}
    text = RECOGNITION.format(**{"other": "an object", **words, "name": article + name})
    return {"question": text, "choices": [["Yes", True], ["No", False]], "type": "recognition"}


def prompt(description: str, question: Mapping[str, Any]) -> str:
    """Return what the judge is asked."""
    choices = "".join(f"{LETTERS[i].upper()}. {text}\n" for i, (text, _) in enumerate(question["choices"]))
    return PROMPT.replace("{question}", f"{question['question']}\n{choices}".strip()).replace("{description}", description)


def chosen(answer: str, choices: Sequence[str]) -> int | None:
    """Return which choice an answer means: the choice, its letter, or both; the only choice that it holds; what its letter at the beginning
    says; of several that it holds the last, and of those that begin there the longest; the longest choice that holds it. None: no such."""
    answer, texts = answer.strip().lower(), [choice.strip().lower() for choice in choices]
    held = []
    for i, text in enumerate(texts):
        if answer in (text, f"{LETTERS[i]}. {text}", LETTERS[i]):
            return i
        if text in answer:
            held.append(i)
    if len(held) == 1:
        return held[0]
    if answer[1:2] == "." and answer[0] in LETTERS:
        return LETTERS.index(answer[0])
    if held:
        return max(held, key=lambda i: (answer.index(texts[i]), len(texts[i])))
    if answer and (holding := [i for i, text in enumerate(texts) if answer in text]):
        return max(holding, key=lambda i: len(texts[i]))
    return LETTERS.index(answer[0]) if answer[1:2] == "\n" and answer[0] in LETTERS else None


def judged(region: JudgedRegion, description: str, judge: Judge) -> RegionScore:
    """Return the score of a description. Where the object is not recognised no question scores more than 0; an answer that means no choice
    scores 0. Raises `ValueError` for a letter that no choice has."""
    first = recognition(region.name)
    recognised = bool(_value(judge(prompt(description, first)), first, region.number))
    scores: dict[str, list[float]] = {"positive": [], "negative": []}
    for question in region.questions:
        value = float(_value(judge(prompt(description, question)), question, region.number))
        scores[question["type"]].append(value if recognised else min(0.0, value))
    positive, negative = scores["positive"], scores["negative"]
    return RegionScore(recognised, sum(positive) / len(positive), sum(negative) / len(negative) if negative else None)


def _value(answer: str, question: Mapping[str, Any], number: str) -> Any:
    choices = question["choices"]
    place = chosen(answer, [text for text, _ in choices])
    if place is not None and place >= len(choices):
        raise ValueError(f"region {number}: the judge says {answer!r:.80}, of {len(choices)} choices")
    return 0 if place is None else choices[place][1]


def metrics(scores: Sequence[RegionScore]) -> dict[str, float]:
    """Return `dlc_positive` and `dlc_negative`, means over regions (those without negative questions left out), and their mean `dlc`."""
    positive = sum(score.positive for score in scores) / len(scores)
    negatives = [score.negative for score in scores if score.negative is not None]
    if not negatives:
        raise ValueError("DLC-Bench: no region has a negative question")
    negative = sum(negatives) / len(negatives)
    recognised = sum(score.recognised for score in scores) / len(scores)
    found = {"dlc_positive": positive, "dlc_negative": negative, "dlc": (positive + negative) / 2}
    return found | {"recognised": recognised, "n": len(scores)}


class HttpJudge:
    """A model behind an OpenAI-compatible address, such as http://localhost:8000/v1. What it said is kept in `kept`, a file of JSON lines,
    so that a run that was stopped asks only what is left."""

    def __init__(self, url: str, model: str, key: str = "", kept: Path | None = None, timeout: float = 300) -> None:
        self.url, self.model, self._key, self._kept, self._timeout = url.rstrip("/"), model, key, kept, timeout
        self._said: dict[str, str] = {}
        if kept is not None and kept.is_file():
            rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
            self._said = {row["prompt"]: row["answer"] for row in rows if row["judge"] == model}

    def __call__(self, text: str) -> str:
        """Ask the judge. Raises `RuntimeError` naming the address where it does not answer as such addresses do."""
        if text not in self._said:
            self._said[text] = self._ask(text)
            if self._kept is not None:
                with open(self._kept, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"judge": self.model, "prompt": text, "answer": self._said[text]}) + "\n")
        return self._said[text]

    def _ask(self, text: str) -> str:
        body = json.dumps({"model": self.model, "messages": [{"role": "user", "content": text}], **SAMPLING}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as reply:
                return str(json.loads(reply.read())["choices"][0]["message"]["content"])
        except (OSError, urllib.error.URLError, ValueError, LookupError, TypeError) as error:
            raise RuntimeError(f"{self.url}: the judge {self.model} does not answer: {error!r:.200}") from error


def protocol(folder: Path, judge: str, question: str, max_new_tokens: int, weights: str) -> dict[str, Any]:
    """Return what the numbers depend on."""
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("annotations.json", "qa.json", "class_names.json")
    }
    asked = hashlib.sha256((PROMPT + RECOGNITION).encode()).hexdigest()
    about = {"judge": judge, "judge_prompt_sha256": asked, "sampling": SAMPLING, "caption_prompt": question}
    return about | {"max_new_tokens": max_new_tokens, "weights_sha256": weights, "benchmark_sha256": files}


def write(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
