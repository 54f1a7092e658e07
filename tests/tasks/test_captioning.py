"""Supervised captioning: the official conversation and its loss, what is drawn, and that it teaches captions alone."""

import re
from typing import Any

import pytest
import torch

from ans.data.matching import region_mask
from ans.model import prompts
from ans.model.segmenter import Conversations, Segmenter
from ans.model.visual_prompt import region_cells
from ans.tasks import captioning
from ans.tasks.base import Losses
from tests.golden_case import GoldenCase
from tests.task_case import TaskCase

pytestmark = pytest.mark.usefixtures("as_recorded")


def test_the_official_conversation(golden: GoldenCase, golden_model: Segmenter) -> None:
    """Ids, labels and loss of two regions of an image, against the official code's."""
    case = next(case for case in golden.cases if f"{case}/region_masks" in golden.tensors)
    said = golden.meta["text"][case]["conversation_before_template"]
    questions = [re.sub(r"region\d+", "region1", turn["input"].rpartition("\n")[2]) for turn in said]
    features = golden_model.encode_images([golden.image(case)])
    cells = region_cells(golden[f"{case}/region_masks"], features.visual[0].grid.region)
    turns = captioning.conversation(
        golden_model.template, features.visual[0].grid.tokens, cells, questions, [turn["output"] for turn in said]
    )
    ids, labels = prompts.encode_conversation(golden_model.tokenizer, golden_model.template, turns)
    assert len(said) > 1 and ids == golden[f"{case}/input_ids"][0].tolist() and labels == golden[f"{case}/labels"][0].tolist()
    batch = torch.tensor([ids])
    with torch.no_grad():
        out = golden_model(features, Conversations(batch, torch.tensor([labels]), torch.ones_like(batch), [0], [cells]))
    assert float(out.language_loss) / len(out.labels) == pytest.approx(float(golden[f"{case}/llm_loss"]), abs=1e-4)


def made(case: TaskCase, count: int = 3, **changes: Any) -> tuple[captioning.Batch, Losses]:
    case.model.eval()  # dropout would differ from run to run
    task = case.task("captioning", **changes)
    batch = task.batch(range(count))
    return batch, case.losses(task, batch)


@pytest.mark.second
def test_the_loss_by_hand(case: TaskCase) -> None:
    """Of each conversation by itself, without padding, by transformers' own forward: the mean over all labels."""
    batch, losses = made(case, sources=("refcoco", "describe"))
    model, total, count, right = case.model, 0.0, 0, 0
    for ids, labels, attention, cells, one in zip(
        batch.ids, batch.labels, batch.mask, batch.cells, model.image_tokens(case.features(batch)), strict=True
    ):
        ids, labels = ids[attention.bool()], labels[attention.bool()]
        tokens = torch.cat([one.tokens.flatten(0, 1), *(one.tokens[-1][region.flatten()] for region in cells)])
        embeds = model.vlm.embed(ids[None], tokens, model.image_token)
        logits = model.vlm.language_model(inputs_embeds=embeds).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum"))
        right += int((logits.argmax(-1) == labels[1:])[labels[1:] != -100].sum())
        count += int((labels != -100).sum())
    assert float(losses.values["captioning_language"]) == pytest.approx(total / count, rel=1e-4) == float(losses.total.detach())
    assert float(losses.values["captioning_right"]) == pytest.approx(right / count)


def test_every_region_of_a_conversation_is_asked_for(case: TaskCase) -> None:
    batch, losses = made(case, 4, sources=("refcoco",), regions_per_conversation=2)
    assert {len(cells) for cells in batch.cells} == {2} and len(batch.captions) == len(batch.questions) == len(batch.where) == 8
    texts = [case.model.tokenizer.decode(row[mask.bool()]) for row, mask in zip(batch.ids, batch.mask, strict=True)]
    assert all("region1 <vp>" in text and "region2 <vp>" in text for text in texts)
    assert all(" region2." in text.rpartition("<|im_start|>")[0].rpartition("<|im_start|> user")[2] for text in texts)
    said = [token for row in batch.labels for token in row[row != -100].tolist()]
    assert said == case.model.tokenizer.encode("".join(f"{caption}<|im_end|>" for caption in batch.captions))
    assert losses.example.texts["data"] == batch.captions and len(losses.example.texts["model"]) == 8
    records = [case.indexes("refcoco").record(n) for n in range(len(case.indexes("refcoco")))]
    known = {
        (record.path, expression.sent): (record, region)
        for record in records for region in record.regions if region.split == "train" for expression in region.expressions
    }  # fmt: skip
    for (path, _), caption, truth, given in zip(
        batch.where, batch.captions, losses.example.truth, losses.example.logits, strict=True
    ):
        mask = torch.from_numpy(region_mask(*known[path, caption]))
        assert torch.equal(truth, case.model.config.decoder.soft_target(mask)) and torch.equal(given > 0, truth > 0.5)
    assert len(set(zip(batch.where, batch.captions, strict=True))) == 8, "no region twice in a conversation"


def test_a_long_caption_is_cut(case: TaskCase) -> None:
    task = case.task("captioning", {"caption_len": 3}, regions_per_conversation=1)
    batch = task.batch(range(3))
    assert (batch.labels != -100).sum(1).tolist() == [3, 3, 3] and batch.counts == {"tokens": 9}


def test_it_teaches_no_mask_and_encodes_for_none(case: TaskCase) -> None:
    batch, losses = made(case)
    assert len(batch.images.sam) == 0, "the mask decoder's image encoder is idle"
    found = case.gradients(losses)
    reached = {name for name, gradient in found.items() if gradient is not None and gradient.abs().max() > 0}
    assert any("lora_B" in name for name in reached) and any("mlp1" in name for name in reached)
    assert not any("text_hidden_fcs" in name or "sam_mask_decoder" in name for name in reached)


def test_a_model_without_tokens_for_regions_is_refused(case: TaskCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(case.model.config.family), "new_tokens", ("[SEG]",))
    with pytest.raises(ValueError, match=r"train\.captioning: .* has no tokens for regions"):
        case.task("captioning")
