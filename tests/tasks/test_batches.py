"""Micro-batches: each `[SEG]` beside its own mask, each region on the image that it lies on."""

from collections import Counter

import pytest
import torch
from pycocotools import mask as coco

from ans.data.arrow import read_index
from ans.data.matching import region_mask
from ans.model import prompts
from ans.model.visual_prompt import region_cells
from ans.objectives.batches import pad_right
from ans.tasks.loop1 import MaskSource
from ans.workspace import Workspace
from tests import pipeline
from tests.task_case import TaskCase


@pytest.mark.second
def test_an_epoch_sees_every_image_once(case: TaskCase) -> None:
    task = case.task("referring")
    rows = len(task)
    seen = [task.pool.at(position)[1] for position in range(2 * rows)]
    assert sorted(seen[:rows]) == sorted(seen[rows:]) == list(range(rows))
    assert seen[:rows] != seen[rows:]


@pytest.mark.parametrize("source", ["sav", "sa1b_subset", "openimages"])
def test_two_views_of_one_object(case: TaskCase, source: str) -> None:
    """SAV: described on the first frame, segmented on the second; elsewhere both are one image."""
    task = case.task("loop1", sources={source: MaskSource()})
    batch, config = task.batch(range(4)), case.model.config
    for n in range(4):
        record, region = task.sources[0].regions.sample(task.pool.at(n)[1])
        seen = record.second if record.second and region.second_counts else record.path
        assert batch.where[n] == (seen, source) and batch.segment_index[n] == n
        assert (batch.describe_index[n] == n) == (seen == record.path)
        cells = region_cells(torch.from_numpy(region_mask(record, region))[None], config.family.grid(1, 1).region)[0]
        assert torch.equal(batch.cells[n], cells)
        counts = region.second_counts if seen == record.second else region.counts
        truth = coco.decode({"size": [record.height, record.width], "counts": counts.encode()})
        assert torch.equal(batch.targets.soft[n], config.decoder.soft_target(torch.from_numpy(truth)))
    assert len(batch.images.sam) == 4
    assert len(batch.images.pixels) == 4 + sum(d >= 4 for d in batch.describe_index)


def test_captions_are_learnt_with_their_end(case: TaskCase) -> None:
    end = case.model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(ids[-1] == end for ids in case.task("loop2").batch(range(4)).captions)
    short = case.task("loop2", {"caption_len": 2}).batch(range(4)).captions
    assert all(len(ids) == 2 and end not in ids for ids in short)


def test_one_target_for_each_seg_in_order(case: TaskCase) -> None:
    batch, model = case.task("referring").batch(range(4)), case.model
    soft = batch.targets.soft
    seg = model.tokenizer.convert_tokens_to_ids(prompts.SEG_TOKEN)
    assert int((batch.ids == seg).sum()) == len(soft) == len(batch.targets.uniform)
    assert ((soft >= 0) & (soft <= 1)).all() and (soft.flatten(1).max(1).values > 0.5).all()
    assert (batch.ids[batch.mask == 0] == 0).all() and (batch.labels[batch.mask == 0] == prompts.IGNORE).all()
    image = model.tokenizer.convert_tokens_to_ids(model.template.image_token)
    assert ((batch.ids == image).sum(1) == model.config.family.grid(1, 1).tokens).all()
    answered = batch.labels[batch.labels != prompts.IGNORE]
    assert int((answered == seg).sum()) == len(soft)


def test_points_are_drawn_when_asked(case: TaskCase) -> None:
    assert case.task("referring").batch(range(2)).targets.uniform.shape[1:] == (0, 2)
    assert case.task("referring", {"mask_points": 8}).batch(range(2)).targets.uniform.shape[1:] == (8 * 3 + 2, 2)


def test_soft_target_is_the_share_of_a_cell(case: TaskCase) -> None:
    config = case.model.config
    mask = torch.zeros(2 * config.decoder.side, 2 * config.decoder.side, dtype=torch.uint8)
    mask[0:2, 0:3] = 1
    expected = torch.zeros(config.decoder.side, config.decoder.side)
    expected[0, 0], expected[0, 1] = 1.0, 0.5
    torch.testing.assert_close(config.decoder.soft_target(mask), expected)


def test_region_mask_is_the_recorded_area(small_world) -> None:
    record = read_index(Workspace(small_world).index(pipeline.REFERRING[0])).record(0)
    for region in record.regions:
        mask = region_mask(record, region)
        assert mask.shape == (record.height, record.width) and int(mask.sum()) == region.area


def test_pad_right() -> None:
    ids, labels, mask = pad_right([([1, 2, 3], [-100, 2, 3]), ([4], [4])])
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert labels.tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_nothing_to_train_on_is_an_error(case: TaskCase) -> None:
    with pytest.raises(
        ValueError, match=r"^no image to train on: none of train.referring.sources \(openimages\) below .*world has"
    ):
        case.task("referring", sources=("openimages",))
    with pytest.raises(ValueError, match="^train.loop1.sources: refcoco: no sample"):
        case.task("loop1", sources={"refcoco": MaskSource(repeats=0.0)})


def test_several_objects_of_an_image(case: TaskCase) -> None:
    """They share the encoded image, each with its own cells and mask; the first is the sample itself."""
    one, several = (case.task("loop1", objects_per_image=n).batch(range(8)) for n in (1, 3))
    assert len(several.images.pixels) == len(one.images.pixels) and len(one.segment_index) == 8 < len(several.segment_index)
    assert Counter(several.segment_index).most_common(1)[0][1] <= 3
    first = [several.segment_index.index(place) for place in range(8)]
    assert all(torch.equal(several.cells[place], cells) for place, cells in zip(first, one.cells, strict=True))
    assert torch.equal(several.targets.soft[first], one.targets.soft)
    assert [several.describe_index[i] for i in first] == one.describe_index
    known = sum(truth is not None for truth in several.known)  # half of SA-1B lies in a tar, of which nothing is known
    objects = len(several.segment_index)
    assert several.counts == {"objects": objects, "masks": objects, "tokens": several.answer_tokens, "known": known}
    assert len({(place, cells.numpy().tobytes()) for place, cells in zip(several.segment_index, several.cells, strict=True)}) > 8


@pytest.mark.second
def test_views_of_an_image(case: TaskCase) -> None:
    """Each object has its cells in each view, behind all that is segmented; nothing else of the batch changes."""
    one, several = (case.task("loop1", objects_per_image=2, views=n).batch(range(6)) for n in (1, 3))
    assert one.views == [] and len(several.views) == 2 * len(several.cells)
    assert len(several.images.sam) == len(one.images.sam) == 6
    before = len(one.images.pixels)
    assert len(several.images.pixels) == before + 2 * 6
    for first, second in zip(one.images.pixels, several.images.pixels, strict=False):
        assert torch.equal(first.values, second.values)
    assert several.describe_index == one.describe_index and torch.equal(several.targets.soft, one.targets.soft)
    for n, place in enumerate(several.segment_index):
        (smaller, in_corner), (brighter, where) = several.views[2 * n : 2 * n + 2]
        assert (smaller, brighter) == (before + 2 * place, before + 2 * place + 1)
        assert torch.equal(where, several.cells[n])
        rows, columns = in_corner.shape
        assert in_corner.any() and not in_corner[-(-3 * rows // 4) :].any() and not in_corner[:, -(-3 * columns // 4) :].any()


def test_others_of_an_image_for_a_reward(case: TaskCase) -> None:
    """Each object with the masks of the image's other objects, as they lie where it is segmented."""
    sources = {"sources": {"sa1b_subset": MaskSource(), "sav": MaskSource()}, "objects_per_image": 2}
    task = case.task("loop1", reward=0.1, draws=3, **sources)
    batch, plain = task.batch(range(6)), case.task("loop1", **sources).batch(range(6))
    assert batch.chances is not None and batch.chances.shape == (len(batch.cells), 3, *batch.noise.shape[1:])
    assert plain.chances is None and plain.others == []
    assert len({chance.sum().item() for chance in batch.chances.flatten(0, 1)}) == 3 * len(batch.cells)
    objects = []
    for position in range(6):
        source, number = task.pool.at(position)
        regions = task.sources[source].regions
        record, region = regions.sample(number)
        two = bool(record.second and region.second_counts)
        several = [one for one in regions.usable(record) if bool(one.second_counts) == two]
        masks = [torch.from_numpy(region_mask(record, one, two)) for one in several]
        objects.append([case.model.config.decoder.soft_target(mask) for mask in masks])
    assert max(map(len, objects)) > 2
    for n, (own, others) in enumerate(zip(batch.targets.soft, batch.others, strict=True)):
        known = objects[batch.segment_index[n]]
        assert len(others) == len(known) - 1 and not any(torch.equal(other, own) for other in others)
        assert all(any(torch.equal(other, one) for one in known) for other in others)
    bare = case.task("loop1", reward=0.1, contrast=False, **sources).batch(range(2))
    assert not any(len(others) for others in bare.others)
