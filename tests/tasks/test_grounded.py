"""Grounded conversation: the official answer, a mask for each phrase, and the loss by hand."""

import re
from pathlib import Path

import pytest
import torch

from ans.config import Config
from ans.data.index import build
from ans.data.matching import region_mask
from ans.model import prompts
from ans.tasks import grounded
from ans.toy import world_grounded
from ans.workspace import Workspace
from tests import pipeline
from tests.task_case import TaskCase


@pytest.fixture(scope="module")
def grounded_world(small_world: Path) -> Path:
    """The small world with grounded captions, and their index."""
    root = small_world.parent / "world"
    values = pipeline.small_values(root, sources__grand_f={"reader": "grand_f", "folder": world_grounded.FOLDER})
    config = Config(values)
    world_grounded.write(root, config.world.model_copy(update={"grounded_images": 6}))
    report = build("grand_f", config, Workspace(small_world))
    assert report["images"] == 12 and not report["skipped"]
    return small_world


@pytest.fixture
def case(grounded_world: Path) -> TaskCase:
    found = TaskCase(grounded_world)
    found.config = pipeline.small_config(
        found.root, train__mask_points=0, train__max_tiles=1, train__grounded__enabled=True,
        sources__grand_f={"reader": "grand_f", "folder": world_grounded.FOLDER},
    )  # fmt: skip
    return found


def official(caption: str, spans: list[tuple[int, int]]) -> str:
    """`tag_caption` of the official data set, by its description: from the last phrase on, so that places stay what they are."""
    for start, end in sorted(spans, reverse=True):
        caption = caption[:start] + "<p> " + caption[start:end] + " </p> [SEG]" + caption[end:]
    return caption


@pytest.mark.parametrize(
    ("caption", "spans"), [("A cat near a dog.", [(0, 5), (11, 16)]), ("cat", [(0, 3)]), ("a b c", [(2, 3), (4, 5)])]
)
def test_the_official_answer(caption: str, spans: list[tuple[int, int]]) -> None:
    answer = re.sub("[\ufdd0\ufdd1]", "", prompts.grounded_answer(caption, spans))
    assert answer == official(caption, spans)
    said = caption.replace("dog.", "dog .")  # the official reading leaves a space where `[SEG]` was
    assert prompts.grounded_parts(answer) == (said, [caption[start:end] for start, end in spans])


def test_every_phrase_has_a_seg_and_its_mask(case: TaskCase) -> None:
    batch = case.task("grounded").batch(range(4))
    masks = iter(batch.targets.soft)
    index = case.indexes("grand_f")
    known = {grounded.answer(list(record.regions)): record for record in index.records() if record.regions[0].split == "train"}
    by_ids = {
        tuple(prompts.encode(case.model.tokenizer, text + "<|im_end|>", start=False)): record for text, record in known.items()
    }
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        record = by_ids[tuple(labels[labels != prompts.IGNORE].tolist())]
        assert int((ids == case.model.seg_token).sum()) == len(record.regions) > 1
        for region in record.regions:
            wanted = case.model.config.decoder.soft_target(torch.from_numpy(region_mask(record, region)))
            assert torch.equal(next(masks), wanted)
    assert next(masks, None) is None


def test_the_loss_by_hand(case: TaskCase) -> None:
    """Of each conversation by itself, without padding: transformers' own language model, the head and the decoder state by state."""
    case.model.eval()
    task = case.task("grounded")
    batch = task.batch(range(3))
    losses = case.losses(task, batch)
    model, features, place = case.model, case.features(batch), 0
    language = count = entropy = dice = 0.0
    for row, (ids, labels, attention) in enumerate(zip(batch.ids, batch.labels, batch.mask, strict=True)):
        ids, labels = ids[attention.bool()], labels[attention.bool()]
        visual = model.image_tokens(features)[row].tokens.flatten(0, 1)
        embeds = model.vlm.embed(ids[None], visual, model.image_token)
        out = model.vlm.language_model(inputs_embeds=embeds, output_hidden_states=True)
        language += float(torch.nn.functional.cross_entropy(out.logits[0, :-1], labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
        for state in out.hidden_states[-1][0][ids == model.seg_token]:
            low_res = model.masks(features, torch.tensor([row]), model.seg_embed(state[None])).low_res[0].double().flatten()
            truth, probability = batch.targets.soft[place].double().flatten(), low_res.sigmoid()
            entropy -= float((truth * probability.log() + (1 - truth) * (1 - probability).log()).mean())
            dice += float(1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1))
            place += 1
    assert place == batch.counts["objects"] and count == batch.counts["tokens"]
    assert float(losses.values["grounded_mask"]) == pytest.approx(entropy / place, rel=1e-4)
    assert float(losses.values["grounded_dice"]) == pytest.approx(dice / place, rel=1e-4)
    assert float(losses.values["grounded_language"]) == pytest.approx(language / count, rel=1e-4)
    assert "grounded_seg_rate" not in losses.values, "a run would stop before it has learnt to say [SEG] here"
    weights = case.config.train.loss
    whole = weights.mask * entropy / place + weights.dice * dice / place + weights.language * language / count
    assert float(losses.total.detach()) == pytest.approx(whole, rel=1e-4)


def test_an_index_of_another_kind_is_refused(case: TaskCase) -> None:
    with pytest.raises(ValueError, match="not of reader grand_f"):
        case.task("grounded", sources=("refcoco",)).batch(range(1))


def test_questions_are_answered_with_masks(case: TaskCase) -> None:
    """`ask` with the question that `segment` asks gives what `segment` gives."""
    from PIL import Image

    record = case.indexes("grand_f").record(0)
    image, model = Image.open(case.root / record.path), case.model.eval()
    ((asked,),) = model.ask([image], [[model.template.segment_question("red circle")]], 8)
    ((found,),) = model.segment([image], [["red circle"]], 8)
    assert asked.answer == found.answer and (asked.masks == found.masks).all()
