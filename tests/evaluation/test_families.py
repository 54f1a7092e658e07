"""Each family: many questions about several images at once, beginnings shared, against each question alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ans.data.matching import record_image
from ans.evaluation.metrics import intersection_union
from ans.model.decoder import Masks
from ans.model.segmenter import Segmenter
from tests import small_releases
from tests.bench.evaluation import make_data
from tests.golden_case import outputs

NEAR_ZERO, MARGIN = 1e-3, 1e-3
TOKENS = 8


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Image.Image], list[list[str]]]:
    """Images of several shapes, and expressions about each."""
    root = tmp_path_factory.mktemp("asked")
    _, plan = make_data(root, 3)
    items = [plan.item(image) for image in plan.images]
    shapes = [(150, 70), (64, 190), (120, 160)]
    images = [
        Image.fromarray(np.asarray(record_image(root, item.record))).resize(size)
        for item, size in zip(items, shapes, strict=True)
    ]
    return images, [[question.expression.sent for question in item.questions[:5] if question.expression] for item in items]


@pytest.mark.parametrize("name", small_releases.TWINS)
@pytest.mark.slow
def test_batched_is_one_by_one(asked: tuple[list[Image.Image], list[list[str]]], tmp_path: Path, name: str) -> None:
    """Ids are the same where the margin is clear; of masks at most one in twenty differs, in pixels whose logits are near zero; and the
    sums of cIoU agree."""
    (images, texts), model = asked, Segmenter.from_pretrained(small_releases.twin(name, tmp_path))
    grids = {one.grid for one in model.encode_images(images).visual}
    assert len(grids) > 1 or name == "sa2va_llava", "rows of several lengths in one batch"
    decoded: list[Tensor] = []
    decode = model.sam.decode
    model.sam.decode = lambda *given: _noted(decode(*given), decoded)
    together, given = model.segment(images, texts, TOKENS), model.segment_given(images, texts, "Sure, [SEG].")
    decoded.clear()
    count = differ = 0
    sums = np.zeros((2, 2))
    truth = {image.size: np.add.outer(np.arange(image.height), np.arange(image.width)) % 50 < 25 for image in images}
    for image, row, free, forced in zip(images, texts, together, given, strict=True):
        for text, answer, other in zip(row, free, forced, strict=True):
            with outputs(model.vlm.language_model.lm_head) as steps:
                (alone,) = model.segment([image], [[text]], TOKENS)[0]
            best = torch.cat([step.reshape(1, -1) for step in steps]).topk(2).values
            assert alone.answer == answer.answer or float((best[:, 0] - best[:, 1]).min()) < MARGIN
            decoded.clear()
            (single,) = model.segment_given([image], [[text]], "Sure, [SEG].")[0]
            logits = model.upscale(decoded[0], (image.height, image.width))[0].numpy()
            wrong = single.mask != other.mask
            count, differ = count + 1, differ + int(wrong.any())
            assert (np.abs(logits[wrong]) < NEAR_ZERO).all()
            for number, mask in enumerate((single.mask, other.mask)):
                sums[number] += intersection_union(mask, truth[image.size])
    assert count == 15 and differ <= 0.05 * count
    assert abs(np.divide(*sums[0]) - np.divide(*sums[1])) < 1e-5
    masks = {single.mask.tobytes() for row in given for single in row}
    few = name == "sa2va_llava"  # its tokenizer has few words, so that many questions are the same
    assert len(masks) > (0.3 if few else 0.7) * count, "most questions have a mask of their own"


@pytest.mark.parametrize("name", small_releases.TWINS)
@pytest.mark.second
def test_captions_are_one_by_one(asked: tuple[list[Image.Image], list[list[str]]], tmp_path: Path, name: str) -> None:
    """Several regions of each image, all in one batch, against each alone; those of Qwen-VL, too, as if they had learnt regions."""
    images, model = asked[0], Segmenter.from_pretrained(small_releases.twin(name, tmp_path, regions=True))
    small_releases.silence(model)
    regions = []
    for image in images:
        masks = np.zeros((3, image.height, image.width), dtype=bool)
        masks[0, : image.height // 3], masks[1, :, image.width // 2 :], masks[2, -2:, -2:] = True, True, True
        regions.append(masks)
    together = model.describe(images, regions, TOKENS)
    for image, masks, row in zip(images, regions, together, strict=True):
        for mask, caption in zip(masks, row, strict=True):
            with outputs(model.vlm.language_model.lm_head) as steps:
                ((alone,),) = model.describe([image], [mask[None]], TOKENS)
            best = torch.cat([step.reshape(1, -1) for step in steps]).topk(2).values
            assert alone == caption or float((best[:, 0] - best[:, 1]).min()) < MARGIN
    assert len({caption for row in together for caption in row}) > 1, "regions have captions of their own"


def _noted(masks: Masks, found: list[Tensor]) -> Masks:
    found.append(masks.low_res)
    return masks
