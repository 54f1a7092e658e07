"""Chat templates and the texts that the released Sa2VA models were trained on, and their encoding into ids and labels.

The texts are data of the official project (magic-research/Sa2VA): a model answers the prompts it was trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

IGNORE = -100
SEG_TOKEN = "[SEG]"
_GAP = "\0"
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_DATA = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")

SEGMENT_PROMPT = " Please segment {} in this image."
VIDEO_PROMPT = "Please segment {}."
VIDEO_QUESTION_PROMPT = " {} Please respond with a segmentation mask."
"""What the official evaluation of videos asks: by an expression, and by one that is a question already."""
DESCRIBE_PROMPT = "Please give me a short description of the region in the picture marked by region1."
DESCRIBE_PROMPTS = (
    DESCRIBE_PROMPT,
    "Please describe the region1 in the picture.",
    "What is in the region1 of this image?",
    "Please give me a description of region1 in this image.",
)
"""The first is what evaluation asks; the others vary it in training."""

GROUNDED_PROMPT = (
    "Could you please give me a brief description of the image? Please respond with interleaved segmentation masks for the "
    "corresponding parts of the answer."
)
"""What the official evaluation of grounded conversation asks (GLaMM's GCG); training asks one of `GROUNDED_QUESTIONS`."""
GROUNDED_QUESTIONS = (
    "Could you please give me a detailed description of the image? Please respond with interleaved segmentation masks for the "
    "corresponding parts of the answer.",
    "Can you provide a thorough description of this image? Please output with interleaved segmentation masks for the "
    "corresponding phrases.",
    "Please describe in detail the contents of the image. Please respond with interleaved segmentation masks for the "
    "corresponding parts of the answer.",
    "Could you give a comprehensive explanation of what can be found within this picture? Please output with interleaved "
    "segmentation masks for the corresponding phrases.",
    "Could you give me an elaborate explanation of this picture? Please respond with interleaved segmentation masks for the "
    "corresponding phrases.",
    "Could you provide me with a detailed analysis of this photo? Please output with interleaved segmentation masks for the "
    "corresponding parts of the answer.",
)
PHRASE_START, PHRASE_END = "<p>", "</p>"

_QUESTIONS = (
    ("Can you segment the {} in this image", "?"),
    ("Please segment {} in this image", "."),
    ("What is {} in this image? Please respond with segmentation mask", "."),
    ("What is {} in this image? Please output segmentation mask", "."),
    ("Could you provide a segmentation mask for the {} in this image", "?"),
    ("Please identify and segment the {} in this image", "."),
    ("Where is the {} in this picture? Please respond with a segmentation mask", "."),
    ("Can you highlight the {} in this image with a segmentation mask", "?"),
)
SEG_QUESTIONS = tuple(question + end for question, mark in _QUESTIONS for end in (mark, ""))
SEG_ANSWERS = ("It is [SEG].", "Sure, [SEG].", "Sure, it is [SEG].", "Sure, the segmentation result is [SEG].", "[SEG].")
REJECTION = "No target [SEG]."
"""The answer to an expression of nothing, whose mask has no pixel; as the gRefCOCO data set in the official repository has it
(`GRefCOCO_Dataset.py` of Pixel-SAIL, `sa2va_eval/projects/ST`). The released Sa2VA models never saw it."""


@dataclass(frozen=True)
class Template:
    """A chat format. `instruction` wraps one user turn, `suffix` ends an answer (and is learnt), `separator` follows it (and is
    not), `stop_words` end a generation. An image is `image_start`, a number of `image_token`, and `image_end`; a region is
    `region_start`, a number of `image_token`, and `region_end`. `segment` is what evaluation asks, `questions` are what training
    does; `sentence` and `sentences` are the same about a text that is a whole sentence, where the model knows such. `system` stands
    before a question that awaits its answer, and before no conversation of training: so the official release that has one."""

    instruction: str
    suffix: str = ""
    separator: str = ""
    stop_words: tuple[str, ...] = ()
    image_start: str = "<img>"
    image_token: str = "<IMG_CONTEXT>"
    image_end: str = "</img>"
    region_start: str = "<vp>"
    region_end: str = "</vp>"
    segment: str = SEGMENT_PROMPT
    questions: tuple[str, ...] = SEG_QUESTIONS
    sentence: str | None = None
    sentences: tuple[str, ...] = ()
    system: str = ""

    @property
    def image_last(self) -> str:
        """The last token of an image's placeholder."""
        return self.image_end or self.image_token

    def image_string(self, tokens: int) -> str:
        """Return the placeholder of an image that has `tokens` image tokens."""
        return f"{self.image_start}{self.image_token * tokens}{self.image_end}\n"

    def region_string(self, cells: Sequence[int], end: str) -> str:
        """Return the placeholder of several regions, the n-th of which covers `cells[n]` grid cells."""
        regions = (f"region{i + 1}{self.region_start}{self.image_token * n}{self.region_end}" for i, n in enumerate(cells))
        return f"There are {len(cells)} part regions in the picture: {', '.join(regions)}.{end}"

    def segment_question(self, text: str) -> str:
        """Return what evaluation asks, to find what `text` names."""
        return (self.sentence if self.sentence and self.asks_itself(text) else self.segment).format(text)

    def video_question(self, text: str) -> str:
        """Return what evaluation asks of a video's frames, to find what `text` names."""
        return (VIDEO_QUESTION_PROMPT if "?" in text else VIDEO_PROMPT).format(text)

    def training_questions(self, text: str) -> tuple[str, ...]:
        """Return the wordings of training, with `{}` for the expression."""
        return self.sentences if self.asks_itself(text) else self.questions

    def expression(self, text: str) -> str:
        """Return a text as the training questions hold it."""
        return text.strip() if self.asks_itself(text) else expression_text(text)

    def asks_itself(self, text: str) -> bool:
        """Return whether a text is a whole sentence, as ReasonSeg's long queries are, and the model knows such."""
        return self.sentence is not None and text.rstrip(_CLOSE).rstrip().endswith(("?", ".", "!"))


_CHATML = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
TEMPLATES = {
    "phi3_chat": Template("<|user|>\n{input}<|end|>\n<|assistant|>\n", "<|end|>", "\n", ("<|end|>",)),
    "qwen_chat": Template(_CHATML, "<|im_end|>", "\n", ("<|im_end|>", "<|endoftext|>")),
    "internlm2_chat": Template(_CHATML, "<|im_end|>", "\n", ("<|im_end|>",)),
    "vicuna": Template("USER: {input} ASSISTANT:", separator="\n"),
    "llama3_chat": Template(
        "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        "",
        ("<|eot_id|>",),
    ),
}
"""Those of the official Sa2VA configurations, by their names there."""


@dataclass(frozen=True)
class Turn:
    """One question with its answer. `separated` puts the template's separator behind the answer, without a label."""

    question: str
    answer: str
    separated: bool = False


def quoted(text: str) -> str:
    """Return a text of the data, or of a user, for a place in a prompt: whatever it says, `encode` makes no special token of it.

    The marks are noncharacters, which stand for nothing in any text.
    """
    return f"{_OPEN}{text.replace(_OPEN, '').replace(_CLOSE, '')}{_CLOSE}"


def encode(tokenizer: PreTrainedTokenizerBase, text: str, start: bool = True) -> list[int]:
    """Return ids of a prompt, or of a part of one. `start`: with the tokenizer's own start token, where it has one.

    The only place where texts become ids: what is `quoted` is encoded as ordinary text, cut where it would be a special token, and
    all else as the tokenizer does.
    """
    plain, inside = "", []
    for number, part in enumerate(_DATA.split(text)):  # every second one is quoted
        inside += [number % 2 == 1] * len(part)
        plain += part
    specials = _specials(tokenizer)
    cuts: set[int] = set()
    for found in specials.finditer(plain):
        if any(inside[found.start() : found.end()]):
            cuts.add(found.start() + 1)
    if not cuts:
        return tokenizer.encode(plain, add_special_tokens=start)
    pieces, places = [], [0, *sorted(cuts), len(plain)]
    for begin, end in pairwise(places):
        pieces += _cut_again(specials, plain[begin:end], inside[begin:end])
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        ids += tokenizer.encode(piece, add_special_tokens=start and number == 0)
    return ids


def _cut_again(specials: re.Pattern[str], piece: str, inside: list[bool]) -> list[str]:
    """Return the places of special tokens: a cut may have left another special token, which overlapped with the one that was cut."""
    for found in specials.finditer(piece):
        if any(inside[found.start() : found.end()]):
            at = found.start() + 1
            return [piece[:at], *_cut_again(specials, piece[at:], inside[at:])]
    return [piece]


@lru_cache(maxsize=8)
def _specials(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return every token that the tokenizer finds in a text before it cuts the rest into words, the longest first."""
    texts = {text for text in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()) if len(text) > 1}
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def expression_text(raw: str) -> str:
    """Return an expression as the training questions hold it: lower case, without the final full stop."""
    text = raw.lower().strip()
    return text[:-1] if text.endswith(".") else text


def grounded_answer(caption: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return the answer of grounded conversation: the caption, with each of the spans of its characters, which come in order and do not
    overlap, marked as a phrase that has a mask."""
    parts, end = [], 0
    for start, stop in spans:
        before = quoted(caption[end:start]) if start > end else ""
        parts.append(f"{before}{PHRASE_START} {quoted(caption[start:stop])} {PHRASE_END} {SEG_TOKEN}")
        end = stop
    return "".join(parts) + (quoted(caption[end:]) if end < len(caption) else "")


def grounded_parts(answer: str) -> tuple[str, list[str]]:
    """Return the caption of a grounded answer, without its marks, and its phrases, as the official evaluation reads them."""
    flat = answer.replace("\n", "").replace("  ", " ")
    phrases = [found.strip() for found in re.findall(f"{PHRASE_START}(.*?){PHRASE_END}", flat)]
    caption = re.sub("<.*?>", "", flat).replace(SEG_TOKEN, "")
    return " ".join(caption.split()).strip("'").strip(), phrases


def encode_prompt(tokenizer: PreTrainedTokenizerBase, template: Template, text: str) -> list[int]:
    """Return ids of one user turn that awaits its answer."""
    return encode(tokenizer, template.system + template.instruction.format(input=text))


def encode_gap(tokenizer: PreTrainedTokenizerBase, template: Template, text: str) -> tuple[list[int], list[int]]:
    """Return ids before and after the `{}` of one user turn, to be filled by embeddings. Raises `ValueError` without exactly one."""
    whole = template.system + template.instruction.replace("{input}", text.replace("{}", _GAP))
    before, *rest = whole.split(_GAP)
    if len(rest) != 1:
        raise ValueError(f"{text!r} must hold {{}} once")
    return encode(tokenizer, before), encode(tokenizer, rest[0], start=False)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, template: Template, turns: list[Turn], longest: int | None = None
) -> tuple[list[int], list[int]]:
    """Return ids and labels of a conversation; only answers and their suffix carry labels, and of them the first `longest` tokens are
    taken. The tokenizer's own start token, if it has one, comes once, at the very beginning."""
    ids: list[int] = []
    labels: list[int] = []
    for number, turn in enumerate(turns):
        question = encode(tokenizer, template.instruction.format(input=turn.question), start=number == 0)
        answer = encode(tokenizer, turn.answer + template.suffix, start=False)[:longest]
        separator = encode(tokenizer, template.separator, start=False) if turn.separated else []
        ids += question + answer + separator
        labels += [IGNORE] * len(question) + answer + [IGNORE] * len(separator)
    return ids, labels
