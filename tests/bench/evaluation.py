"""Evaluation against evaluation one by one: `python -m tests.bench.evaluation [--quick] [--model NAME] [--size medium]`.

Tiny weights on the synthetic world's val images, one run, the same threads, and `predict`, which is all that evaluation does for
a question, on both sides. One by one: a call of its own for each expression, so that its image is encoded each time. Batched: as
`evaluate` does it, by the plan and the preset's token budget. In the table times are milliseconds per expression.

seven_over_single, one_over_single: speed-up with 7 expressions an image, and with 1.
seven_over_ideal: the former over 7 (E + P + D) / (E + P + 7 D), where one by one E is reading and encoding the image, P running
the shared beginning of the prompt, D the rest.
n_masks_differ, worst_logit: masks of the two that are not the same, and the largest |logit| of a pixel that differs.
n_masks: how many were compared.
peak_bytes, peak_over_quarter: peak of anonymous memory above the loaded model, evaluating all images; the same over that of
evaluating a quarter of them.

`--size medium`: instead, `segment` and `describe` by a model of 120 million random weights (tests/bench/medium.py), at which the
encoders count; one image, one thread, CPU seconds, the best of several turns. Its keys:
seven_over_ideal: E + P + 7 D over the time of 7 expressions together, with E + P that of reading the image and D the rest of one.
one_over_single, describe_one: four images with one expression, or one region, each: one by one over together.
describe_seven: the same of seven regions of one image.
official_over_*: with `--official FOLDER` (`projects/sa2va/hf/models` of github.com/bytedance/Sa2VA of October 2025), of each of the four
cases the official code's time over ours, as it is and in a form with SDPA, in turns; texts and masks have to be the same. Its version of
transformers is installed into an environment of its own, or `ANS_OFFICIAL_PYTHON` names an interpreter that has it.
of_*: of each of the four cases (of_limit_segment_1, ...) the counted operations (products, convolutions, attention) at the speed of a
matrix product measured before and after, over the time. of_limit: the least of them.

`--model`: a model with random weights of another family, one of `TWINS` in tests/small_releases.py. What it answers has no meaning, so
masks are not compared (tests/evaluation/test_families.py does).
"""

import argparse
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ans.config import Config, load
from ans.config.scope import Scope
from ans.data.images import open_image
from ans.data.index import build
from ans.data.matching import record_image
from ans.evaluation.plan import Item, Plan, Row, make_plan
from ans.evaluation.predict import predict, row_tokens
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Forward, Segmenter
from ans.objectives.batches import pad_right
from ans.report.results import decode
from ans.toy.world import write_world
from ans.workspace import Workspace
from tests import small_releases
from tests.bench import add_scales, medium

EXPRESSIONS = 7
NEW_TOKENS = 16
WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"


def make_data(folder: Path, images: int) -> tuple[Config, Plan]:
    """A world below `folder` with `images` val scenes, and the plan of RefCOCO's and RefCOCO+'s val splits, which share them."""
    config = load(WEIGHTS.parents[1] / "params.yaml").changed({"paths.root": str(folder)})
    few = {name: 1 for name in type(config.world).model_fields if name not in ("seed", "shift", "new_colours")}
    write_world(folder, config.world.model_copy(update=few | {"val_images": images}))
    workspace = Workspace(folder)
    for source in ("refcoco", "refcoco_plus"):
        build(source, config, workspace)
    return config, make_plan(Scope(splits=("refcoco_val", "refcoco_plus_val")), workspace.indexes, folder)


def batches(plan: Plan, model: Segmenter, budget: int, expressions: int) -> list[list[Item]]:
    """The plan's batches, had each image `expressions` of them; images with fewer are left out."""
    images = [dataclasses.replace(image, expressions=expressions) for image in plan.images if image.expressions >= expressions]
    cut = dataclasses.replace(plan, images=tuple(images))
    planned = cut.batches(lambda *size: row_tokens(model.config, *size) + NEW_TOKENS, budget)
    items = [[plan.item(image) for image in batch] for batch in planned]
    return [[Item(item.record, item.questions[:expressions]) for item in batch] for batch in items]


def one_by_one(model: Segmenter, root: Path, items: list[Item]) -> list[Row]:
    return [
        row
        for item in items
        for question in item.questions
        for row in predict(model, root, [Item(item.record, (question,))], NEW_TOKENS)
    ]


def differences(model: Segmenter, root: Path, single: list[Row], batched: list[Row]) -> tuple[int, float]:
    """(masks that differ, largest |logit| of one by one where they do)."""
    count, worst = 0, 0.0
    for one, other in zip(single, batched, strict=True):
        if one["counts"] != other["counts"]:
            count += 1
            masks = [decode(row["counts"], row["height"], row["width"]) for row in (one, other)]
            worst = max(worst, float(np.abs(mask_logits(model, root, one)[masks[0] != masks[1]]).max()))
    return count, worst


@torch.no_grad()
def retold(model: Segmenter, root: Path, row: Row) -> tuple[Features, Conversations, Forward]:
    """A row's question and answer as training reads them, alone: no cache, no batch, no generation."""
    features = model.encode_images([open_image(root, row["image_path"])])
    image = model.template.image_string(features.visual[0].grid.tokens)
    turn = prompts.Turn(image + model.template.segment_question(row["sent"]), row["answer"])
    ids, labels, mask = pad_right([prompts.encode_conversation(model.tokenizer, model.template, [turn])])
    conversation = Conversations(ids, labels, mask, [0], [None])
    return features, conversation, model(features, conversation)


@torch.no_grad()
def mask_logits(model: Segmenter, root: Path, row: Row) -> np.ndarray:
    """(height, width) logits of a row's united mask, computed alone."""
    features, _, out = retold(model, root, row)
    low_res = model.masks(features, out.seg_image, out.seg_embeds).low_res
    return model.upscale(low_res, features.sizes[0]).amax(0).numpy()


def smallest_margin(model: Segmenter, root: Path, row: Row) -> float:
    """The least distance between the best and the second-best logit in a row's answer and its end, computed alone."""
    _, conversation, out = retold(model, root, row)
    said = conversation.labels[conversation.labels != prompts.IGNORE].tolist()
    best = out.logits[: said.index(model.tokenizer.eos_token_id) + 1].topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The quickest of several runs: what others do on the machine only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_anonymous(work: Callable[[], object]) -> int:
    """Bytes of anonymous memory of this process at their peak during `work`."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peak, _anonymous())


def _anonymous() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def measure(images: int, repeats: int, twin: str | None = None) -> dict[str, float | int]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config, plan = make_data(root, images)
        model = Segmenter.from_pretrained(small_releases.twin(twin, root / "twin") if twin else WEIGHTS)
        budget = config.evaluate.tokens_per_batch
        seven, one = (batches(plan, model, budget, number) for number in (EXPRESSIONS, 1))
        items, firsts = ([item for batch in several for item in batch] for several in (seven, one))
        pixels = [record_image(root, item.record) for item in items]

        def batched(several: list[list[Item]]) -> list[Row]:
            return [row for batch in several for row in predict(model, root, batch, NEW_TOKENS)]

        def evaluated(several: list[list[Item]]) -> None:
            for batch in several:  # like `evaluate`, which keeps no rows in memory
                predict(model, root, batch, NEW_TOKENS)

        # First of all, because memory that was freed stays with the process and would hide what is needed. Warm-up, too.
        loaded = _anonymous()
        small = batches(plan, model, budget // 4, EXPRESSIONS)
        quarter = peak_anonymous(lambda: evaluated(small[: max(1, len(small) // 4)])) - loaded
        whole = peak_anonymous(lambda: evaluated(small)) - loaded
        rows = []
        single = seconds(lambda: rows.append(one_by_one(model, root, items)), repeats) / len(rows[0])
        single_first = seconds(lambda: one_by_one(model, root, firsts), repeats) / len(firsts)
        together = seconds(lambda: batched(seven), repeats) / len(rows[0])
        together_first = seconds(lambda: batched(one), repeats) / len(firsts)
        opening = seconds(lambda: [record_image(root, item.record) for item in items], repeats) / len(items)
        encode = opening + seconds(lambda: [model.encode_images([image]) for image in pixels], repeats) / len(items)
        prefix = opening + seconds(lambda: [model.read([image]) for image in pixels], repeats) / len(items) - encode
        rest = single - encode - prefix
        ideal = EXPRESSIONS * single / (encode + prefix + EXPRESSIONS * rest)
        differ, worst = (0, 0.0) if twin else differences(model, root, rows[0], batched(seven))
    print(f"{len(items)} images with {EXPRESSIONS} expressions, {len(firsts)} with 1; {torch.get_num_threads()} threads; ms each")
    for name, value in (
        ("E  open and encode", encode),
        ("P  prompt beginning", prefix),
        ("D  rest, one by one", rest),
        ("one by one", single),
        ("batched, 7 an image", together),
        ("one by one, 1 an image", single_first),
        ("batched, 1 an image", together_first),
    ):
        print(f"{name:<24}{1000 * value:>8.2f}")
    print(f"{'ideal speed-up':<24}{ideal:>8.2f}")
    return {
        "seven_over_ideal": single / together / ideal,
        "seven_over_single": single / together,
        "one_over_single": single_first / together_first,
        "n_masks_differ": differ,
        "worst_logit": worst,
        "n_masks": len(rows[0]),
        "peak_bytes": whole,
        "peak_over_quarter": whole / quarter,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="fewer images: under 50 s on 2 cores")
    parser.add_argument("--model", choices=small_releases.TWINS, help="another family's, with random weights")
    parser.add_argument("--size", choices=("tiny", "medium"), default="tiny", help="medium: 120 million random weights")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="of --size medium: the official code, to compare with")
    arguments = parser.parse_args()
    if arguments.size == "medium":
        small = {"many": 2, "tokens": 2, "tile": 112, "sam": 128} if arguments.scale == "smoke" else {}
        repeats = {"full": 5, "quick": 2, "smoke": 1}[arguments.scale]
        print(json.dumps(medium.measure(repeats, **small, official=arguments.official)))
        raise SystemExit
    print(json.dumps(measure(*{"full": (80, 3), "quick": (24, 1), "smoke": (4, 1)}[arguments.scale], arguments.model)))
