"""A model of about 100 million random weights in the proportions of the official layout, at which encoders count, and how near its
inference comes to what the machine can do. See `tests.bench.evaluation --size medium`."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.segmenter import Segmenter
from tests.bench import sizes
from tests.bench.gpu import FlopCount
from tests.official import official_python

WORDS = 2000
TILE, SAM, WIDTH, HEIGHT = 448, 512, 640, 480

Work = Callable[[], object]


def config(tile: int = TILE, sam: int = SAM) -> ModelConfig:
    """InternViT : Qwen2.5 : SAM2 as 30 : 48 : 22, like Sa2VA-1B without its vocabulary. One tile per image."""
    values = sizes.config_json("sa2va-1b")
    vision = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "image_size": tile,
    }
    language = {"hidden_size": 512, "intermediate_size": 2752, "num_hidden_layers": 11, "num_attention_heads": 8}
    decoder = {"image_size": sam, "embed_dim": 80, "num_heads": 1, "stages": (1, 2, 7, 2), "global_att_blocks": (5, 7, 9)}
    return ModelConfig.from_dict(
        values
        | {"force_image_size": tile, "max_dynamic_patch": 1, "use_thumbnail": False, "dynamic_image_size": False}
        | {"vision_config": values["vision_config"] | vision}
        | {"llm_config": values["llm_config"] | language | {"vocab_size": WORDS}}
        | {"sam2_config": decoder | {"window_spec": (8, 4, 14, 7)}}
    )


def cpu_seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def product_rate() -> float:
    """FLOP per CPU second of a float32 product of this size of layer, now."""
    rows, width, inner = 1024, 512, 2048
    a, b = torch.rand(rows, width), torch.rand(width, inner)
    return max(2 * rows * width * inner / cpu_seconds(lambda: a @ b) for _ in range(20))


class _Dictated(nn.Module):
    """An output layer that says the given tokens one after the other, whatever it reads, and keeps that."""

    def __init__(self, tokens: Sequence[int], words: int) -> None:
        super().__init__()
        self.tokens, self.words, self.states = list(tokens), words, list[Tensor]()

    def forward(self, normed: Tensor) -> Tensor:
        said = torch.full((len(normed),), self.tokens[len(self.states)])
        self.states.append(normed)
        return nn.functional.one_hot(said, self.words).float()


def teach(model: Segmenter, lessons: Sequence[tuple[Work, Sequence[int]]]) -> None:
    """Change the output layer so that the model gives each work's questions these tokens as an answer: by least squares on what the
    layer reads when they are said."""
    language = model.vlm.language_model
    head, states, said = language.lm_head, [], []
    for work, tokens in lessons:
        language.lm_head = dictated = _Dictated(tokens, head.out_features)
        work()
        for token, read in zip(tokens, dictated.states, strict=True):
            states.append(read)
            said += [token] * len(read)
    language.lm_head = head
    wanted = nn.functional.one_hot(torch.tensor(said), head.out_features)
    rows = torch.linalg.lstsq(torch.cat(states).double(), wanted.double(), driver="gelsd").solution.T
    head.weight.data = rows.float()


class Official:
    """The official code in `folder` (its `projects/sa2va/hf/models`) with this model, in a process of its own that takes turns with this
    one: `tests/bench/official_side.py`."""

    def __init__(
        self, folder: Path, scratch: Path, model: Segmenter, asked: Mapping[str, Any], image: Image.Image, regions: np.ndarray
    ):
        model.save_pretrained(scratch / "model")
        image.save(scratch / "image.png")
        np.save(scratch / "regions.npy", regions)
        sam = dict(model.config.values["sam2_config"])
        sam["channels"] = [sam["embed_dim"] * scale for scale in (8, 4, 2, 1)]
        files = {"image": str(scratch / "image.png"), "regions": str(scratch / "regions.npy")}
        (scratch / "spec.json").write_text(json.dumps(asked | files | {"sam2": sam}), encoding="utf-8")
        command = [official_python(scratch / "venv"), str(Path(__file__).with_name("official_side.py"))]
        self.process = subprocess.Popen(
            [*command, str(folder), str(scratch / "model"), str(scratch / "spec.json")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        while self._line() != "ready\n":
            pass

    def run(self, work: str, form: str) -> tuple[float, list[dict[str, Any]]]:
        """CPU seconds and answers."""
        print(work, form, file=self.process.stdin, flush=True)
        found = json.loads(self._line())
        return found["seconds"], found["answers"]

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the official code's process ended with status {self.process.wait()}")
        return line

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


ANSWER = ("w20", "w21", "w22", "w23", prompts.SEG_TOKEN, "w24", "<|im_end|>")
"""As many tokens as `Sure, it is [SEG].` has."""


def measure(
    repeats: int, many: int = 7, tokens: int = 16, tile: int = TILE, sam: int = SAM, official: Path | None = None
) -> dict[str, float]:
    """The numbers of `--size medium`; `many` expressions or regions of an image, `tokens` of a description."""
    torch.set_num_threads(1)
    model = sizes.random_model(config(tile, sam), torch.device("cpu"), torch.float32).eval()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    texts = [f"w{1 + n} w{2 + n} w{3 + n}" for n in range(many)]
    regions = np.zeros((many, HEIGHT, WIDTH), bool)
    for n in range(many):
        regions[n, 40 * n : 40 * n + 200, 60 * n : 60 * n + 240] = True
    work: dict[str, Work] = {
        "read": lambda: model.read([image]),
        "segment 1": lambda: model.segment([image], [texts[:1]], len(ANSWER)),
        "segment 1, 4 images": lambda: model.segment([image] * 4, [texts[:1]] * 4, len(ANSWER)),
        f"segment {many}": lambda: model.segment([image], [texts], len(ANSWER)),
        "describe 1, 4 images": lambda: model.describe([image] * 4, [regions[:1]] * 4, tokens),
        "describe 1": lambda: model.describe([image], [regions[:1]], tokens),
        f"describe {many}": lambda: model.describe([image], [regions], tokens),
    }
    ids = model.tokenizer.convert_tokens_to_ids
    description = [ids(f"w{30 + n}") for n in range(tokens - 1)] + [ids(ANSWER[-1])]
    teach(model, [(work[f"segment {many}"], ids(list(ANSWER))), (work[f"describe {many}"], description)])
    flops, times, limits = {}, {name: [] for name in work}, {name: [] for name in work}
    for name, one in work.items():  # warm-up, too
        with FlopCount() as counter:
            one()
        flops[name] = counter.total
    asked = ("segment 1", f"segment {many}", "describe 1", f"describe {many}")
    theirs: dict[str, list[float]] = {f"{name}{form}": [] for name in asked for form in ("", " sdpa")} if official else {}
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "tokens": max(tokens, len(ANSWER)),
            "tile": tile,
            "questions": [model.template.segment_question(text) for text in texts],
            "describe": prompts.DESCRIBE_PROMPT,
        }
        other = Official(official, Path(folder), model, spec, image, regions) if official else None
        for _ in range(repeats):
            for name, one in work.items():
                rate = product_rate()
                times[name].append(cpu_seconds(one))
                limits[name].append(flops[name] / max(rate, product_rate()) / times[name][-1])
                for form in ("", " sdpa") if other and name in asked else ():
                    seconds, said = other.run(name, form)
                    theirs[name + form].append(seconds)
                    _compare(one(), said, name)
        if other:
            other.close()
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{weights / 1e6:.0f} million weights, one thread, CPU seconds; GFLOP counted; share of the limit by products")
    best = {name: min(values) for name, values in times.items()}
    share = {name: max(values) for name, values in limits.items()}
    for name in work:
        print(f"{name:<22}{best[name]:>9.3f}{flops[name] / 1e9:>9.1f}{share[name]:>9.2f}")
    for name, values in theirs.items():
        print(f"official {name:<22}{min(values):>9.3f}")
    ideal = best["read"] + many * (best["segment 1"] - best["read"])
    return {
        "seven_over_ideal": ideal / best[f"segment {many}"],
        "one_over_single": 4 * best["segment 1"] / best["segment 1, 4 images"],
        "describe_one": 4 * best["describe 1"] / best["describe 1, 4 images"],
        "describe_seven": many * best["describe 1"] / best[f"describe {many}"],
        "of_limit": min(share[name] for name in asked),
        **{f"of_limit_{name.replace(' ', '_')}": share[name] for name in asked},
        **{
            f"official_over_{name.replace(' ', '_')}": min(values) / best[name.removesuffix(" sdpa")]
            for name, values in theirs.items()
        },
    }


def _compare(ours: Any, theirs: list[dict[str, Any]], name: str) -> None:
    """Raise `SystemExit` where the two do not say the same, or masks differ by more than a few pixels."""
    for one, other in zip(ours[0], theirs, strict=True):
        text, pixels = (one, 0) if isinstance(one, str) else (one.answer, int(one.mask.sum()))
        text, said = (answer.removesuffix(ANSWER[-1]).strip() for answer in (text, other["text"]))
        if text != said or abs(pixels - other.get("pixels", 0)) > 1e-3 * WIDTH * HEIGHT:
            raise SystemExit(f"error: {name}: {text!r}, {pixels} pixels; the official code: {said!r}, {other.get('pixels')}")
