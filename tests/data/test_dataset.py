"""Training samples: the same whatever the number of processes, and each `[SEG]` beside its own mask."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from ans.data import masks
from ans.data.arrow import read_index, write_records
from ans.data.dataset import Referring, Regions, Sampling, TrainingData, training_rows
from ans.data.matching import region_mask
from ans.data.mixing import Pool, interleaved
from ans.data.records import Expression, ImageRecord, Region
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.segmenter import load_tokenizer
from ans.model.visual_prompt import region_cells
from ans.objectives.batches import MaskBatch, ReferringBatch, pad_right
from tests import pipeline

TINY = pipeline.REPOSITORY / "weights" / "tiny"
SAMPLING = Sampling(
    seed=1, batch=4, max_tiles=1, mask_points=0, objects_per_image=3, masks_per_image=1, objects_per_conversation=2,
    caption_len=12, top_k=5, description_prompts=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return pipeline.prepare(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def parts(work):
    indexes = [read_index(work / "data" / "index" / f"{name}.arrow") for name in pipeline.REFERRING]
    return indexes, training_rows(indexes)[0], work.parent / "world"


def dataset(parts, masks=(), captions=None, process=0, processes=1, **changes) -> TrainingData:
    indexes, rows, root = parts
    config = ModelConfig.from_dict(json.loads((TINY / "config.json").read_text()))
    sampling = dataclasses.replace(SAMPLING, **changes)
    return TrainingData(
        Referring(indexes, rows), masks, [1.0] * len(masks), captions, root, config, load_tokenizer(TINY, config), sampling,
        items=60, process=process, processes=processes,
    )  # fmt: skip


def sources(work) -> tuple[list[Regions], Regions]:
    masks = [Regions(n, read_index(work / "data" / "index" / f"{n}.arrow"), None) for n in ("sav", "sa1b_subset", "openimages")]
    return masks, Regions("describe", read_index(work / "data" / "index" / "describe.arrow"), None)


def first_masks(data: TrainingData) -> MaskBatch:
    """Loop 1's first micro-batch."""
    return next(first for first, _ in (data[item] for item in range(len(data))) if isinstance(first, MaskBatch))


def test_processes_share_one_global_batch(parts, work) -> None:
    """Of all three kinds: two processes with half the batch each see what one sees."""
    masks, captions = sources(work)
    whole = dataset(parts, masks, captions)
    halves = [dataset(parts, masks, captions, process, 2, batch=2) for process in range(2)]
    kinds = set()
    for item in range(6):
        one, two = whole[item], [half[item] for half in halves]
        kinds.add(type(one[0]))
        for together, apart in zip(one, zip(*two, strict=True), strict=True):
            assert torch.equal(together.images.sam, torch.cat([batch.images.sam for batch in apart]))
            assert torch.equal(together.targets.soft, torch.cat([batch.targets.soft for batch in apart]))
            assert together.counts == tuple(sum(values) for values in zip(*(batch.counts for batch in apart), strict=True))
        if isinstance(one[0], MaskBatch):
            for name in ("cells", "corruption", "noise"):
                assert torch.equal(getattr(one[0], name), torch.cat([getattr(pair[0], name) for pair in two])), name
            assert one[0].questions == two[0][0].questions + two[1][0].questions
        assert one[1].captions == two[0][1].captions + two[1][1].captions
    assert kinds == {MaskBatch, ReferringBatch}


def test_the_very_first_step_is_referring_and_the_others_are_spread() -> None:
    chosen = [interleaved(step, 0.3) for step in range(100)]
    assert chosen[0] and sum(chosen) == 30
    gaps = np.diff(np.flatnonzero(chosen))
    assert set(gaps) <= {3, 4}
    assert [interleaved(step, 1.0) for step in range(5)] == [True] * 5


def test_a_pool_gives_every_sample_its_share() -> None:
    pool = Pool([5, 4], [1.0, 2.0], seed=3, stream=1, name="x")
    epochs = [[pool.at(epoch * 13 + i) for i in range(13)] for epoch in range(2)]
    for epoch in epochs:
        assert Counter(epoch) == {**{(0, i): 1 for i in range(5)}, **{(1, i): 2 for i in range(4)}}
    assert epochs[0] != epochs[1]
    half = Pool([10], [0.5], seed=3, stream=1, name="x")
    assert {half.at(i)[1] for i in range(10)} == set(range(10)), "the second epoch has what the first left out"
    with pytest.raises(ValueError, match="^x: no sample"):
        Pool([3], [0.0], seed=0, stream=0, name="x")


def test_an_epoch_sees_every_image_once(parts) -> None:
    rows = len(parts[1])
    pool = dataset(parts).referring_pool
    seen = [pool.at(position)[1] for position in range(2 * rows)]
    assert sorted(seen[:rows]) == sorted(seen[rows:]) == list(range(rows))
    assert seen[:rows] != seen[rows:]


def test_two_views_of_one_object(work, parts) -> None:
    """SAV: described on the first frame, segmented on the second; elsewhere both are one image."""
    masks, _ = sources(work)
    for source in masks:
        data = dataset(parts, [source])
        batch = first_masks(data)
        for n in range(4):
            record, region = source.sample(data.mask_pool.at(n)[1])
            seen = record.second if record.second and region.second_counts else record.path
            assert batch.where[n] == (seen, source.name) and batch.segment_index[n] == n
            assert (batch.describe_index[n] == n) == (seen == record.path)
            cells = region_cells(torch.from_numpy(region_mask(record, region))[None], data.config.grid_side)[0]
            assert torch.equal(batch.cells[n], cells)
            counts = region.second_counts if seen == record.second else region.counts
            truth = coco.decode({"size": [record.height, record.width], "counts": counts.encode()})
            assert torch.equal(batch.targets.soft[n], data.config.soft_target(torch.from_numpy(truth)))
        assert len(batch.images.sam) == 4
        assert len(batch.images.tiles) == 4 + sum(d >= 4 for d in batch.describe_index)


def test_captions_are_learnt_with_their_end(work, parts) -> None:
    data = dataset(parts, captions=sources(work)[1])
    end = data.tokenizer.convert_tokens_to_ids("<|im_end|>")
    batch = data[0][1]
    assert len(batch.captions) == 4
    assert all(ids[-1] == end for ids in batch.captions)
    short = dataset(parts, captions=sources(work)[1], caption_len=2)[0][1]
    assert all(len(ids) == 2 and end not in ids for ids in short.captions)


def test_one_target_for_each_seg_in_order(parts) -> None:
    data = dataset(parts)
    batch = data[0][0]
    soft = batch.targets.soft
    seg = data.tokenizer.convert_tokens_to_ids(prompts.SEG_TOKEN)
    assert int((batch.ids == seg).sum()) == len(soft) == len(batch.targets.uniform)
    assert ((soft >= 0) & (soft <= 1)).all() and (soft.flatten(1).max(1).values > 0.5).all()
    assert (batch.ids[batch.mask == 0] == 0).all() and (batch.labels[batch.mask == 0] == prompts.IGNORE).all()
    image = data.tokenizer.convert_tokens_to_ids(prompts.IMAGE_TOKEN)
    assert ((batch.ids == image).sum(1) == data.config.tokens_per_tile).all()
    answered = batch.labels[batch.labels != prompts.IGNORE]
    assert int((answered == seg).sum()) == len(soft)


def test_points_are_drawn_when_asked(parts) -> None:
    assert dataset(parts)[0][0].targets.uniform.shape[1:] == (0, 2)
    assert dataset(parts, mask_points=8)[0][0].targets.uniform.shape[1:] == (8 * 3 + 2, 2)


def test_soft_target_is_the_share_of_a_cell(parts) -> None:
    config = dataset(parts).config
    mask = torch.zeros(2 * config.mask_side, 2 * config.mask_side, dtype=torch.uint8)
    mask[0:2, 0:3] = 1
    expected = torch.zeros(config.mask_side, config.mask_side)
    expected[0, 0], expected[0, 1] = 1.0, 0.5
    torch.testing.assert_close(config.soft_target(mask), expected)


def test_region_mask_is_the_recorded_area(parts) -> None:
    record = parts[0][0].record(0)
    for region in record.regions:
        mask = region_mask(record, region)
        assert mask.shape == (record.height, record.width) and int(mask.sum()) == region.area


def test_pad_right() -> None:
    ids, labels, mask = pad_right([([1, 2, 3], [-100, 2, 3]), ([4], [4])])
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert labels.tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_nothing_to_train_on_is_an_error(parts) -> None:
    indexes, _, root = parts
    with pytest.raises(ValueError, match="no image to train on"):
        dataset((indexes, [], root))


def test_several_objects_of_an_image(parts, work) -> None:
    """They share the encoded image, each with its own cells and mask; the first is the sample itself."""
    masks, _ = sources(work)
    one, several = (first_masks(dataset(parts, masks, batch=8, masks_per_image=n)) for n in (1, 3))
    assert len(several.images.tiles) == len(one.images.tiles) and len(one.segment_index) == 8 < len(several.segment_index)
    assert Counter(several.segment_index).most_common(1)[0][1] <= 3
    first = [several.segment_index.index(place) for place in range(8)]
    assert torch.equal(several.cells[first], one.cells) and torch.equal(several.targets.soft[first], one.targets.soft)
    assert [several.describe_index[i] for i in first] == one.describe_index
    assert several.counts == (len(several.segment_index), several.answer_tokens)
    assert len({(place, cells.numpy().tobytes()) for place, cells in zip(several.segment_index, several.cells, strict=True)}) > 8


def test_no_evaluated_region_and_none_without_a_pixel_is_trained_on(tmp_path) -> None:
    def region(number: int, split: str, area: int) -> Region:
        counts = masks.from_array(np.ones((4, 4)) if area else np.zeros((4, 4)))
        return Region(number, split, "", area, (0.0, 0.0, 4.0, 4.0), counts, (Expression(number, "it", "it"),))

    rows = [
        [region(1, "val", 16), region(2, "train", 16), region(3, "", 16)],
        [region(4, "train", 0)],
        [],
        [region(5, "testA", 16)],
        [region(6, "train", 0), region(7, "train", 16)],
    ]
    records = [ImageRecord(i, f"{i}.jpg", 4, 4, tuple(regions)) for i, regions in enumerate(rows)]
    path = tmp_path / "some.arrow"
    write_records(path, records, {"source": "some", "folder": "some", "reader": "sav", "root_listing": ""})
    regions = Regions("some", read_index(path), None)
    assert [regions.sample(i)[1].region_id for i in range(regions.count)] == [2, 3, 7]
    assert training_rows([read_index(path)]) == ([(0, 4)], 1), "row 0 also has an evaluated region; row 1 has nothing to find"


def test_a_photograph_is_known_wherever_it_lies(tmp_path) -> None:
    """As published, each RefCOCO set may have its own copy of COCO's images."""

    def write(name: str, split: str, path: str) -> None:
        counts = masks.from_array(np.ones((4, 4)))
        region = Region(1, split, "", 16, (0.0, 0.0, 4.0, 4.0), counts, (Expression(1, "it", "it"),))
        metadata = {"source": name, "folder": name, "reader": "sav", "root_listing": "x"}
        write_records(tmp_path / f"{name}.arrow", [ImageRecord(1, path, 4, 4, (region,))], metadata)

    image = "coco2014/train2014/COCO_train2014_000000000009.jpg"
    write("one", "train", f"ref_seg/refcocog/{image}")
    write("two", "testA", f"ref_seg/refcoco/{image}")
    write("three", "testA", "ref_seg/refcoco/coco2014/train2014/COCO_train2014_000000000010.jpg")
    one, two, three = (read_index(tmp_path / f"{name}.arrow") for name in ("one", "two", "three"))
    assert training_rows([one, two]) == ([], 1)
    assert training_rows([one, three]) == ([(0, 0)], 0)


def test_only_regions_with_a_text_are_described(tmp_path) -> None:
    counts = masks.from_array(np.ones((4, 4)))
    said = [(), (Expression(1, "it", "it"),), ()]
    regions = tuple(Region(i, "train", "", 16, (0.0, 0.0, 4.0, 4.0), counts, texts) for i, texts in enumerate(said))
    write_records(
        tmp_path / "own.arrow",
        [ImageRecord(1, "a.jpg", 4, 4, regions), ImageRecord(2, "b.jpg", 4, 4, regions[:1])],
        {"source": "own", "folder": "own", "reader": "sav", "root_listing": "x"},
    )
    index = read_index(tmp_path / "own.arrow")
    described = Regions("own", index, None, described=True)
    assert described.count == 1 and described.sample(0)[1].region_id == 1 and Regions("own", index, None).count == 4
