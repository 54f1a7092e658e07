"""Training samples: the same whatever the number of processes, and each `[SEG]` beside its own mask."""

import json

import numpy as np
import pytest
import torch

from ans.data.dataset import ReferringDataset, pad_right, region_mask, soft_target, training_rows
from ans.data.index import read_index
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.segmenter import load_tokenizer
from tests import pipeline

TINY = pipeline.REPOSITORY / "weights" / "tiny"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    work = pipeline.prepare(tmp_path_factory.mktemp("dataset"))
    indexes = [read_index(work / "data" / "index" / f"{name}.parquet") for name in pipeline.SOURCES]
    return indexes, training_rows(indexes)[0], work.parent / "world"


def dataset(parts, **changes) -> ReferringDataset:
    indexes, rows, root = parts
    settings = {
        "seed": 1,
        "batches": 6,
        "batch": 4,
        "objects_per_image": 3,
        "objects_per_conversation": 2,
        "max_tiles": 1,
        "mask_points": 0,
    }
    config = ModelConfig.from_dict(json.loads((TINY / "config.json").read_text()))
    tokenizer = load_tokenizer(TINY, config)
    return ReferringDataset(indexes, rows, root, config, tokenizer, **(settings | changes))


def test_processes_share_one_global_batch(parts) -> None:
    whole = dataset(parts)
    halves = [dataset(parts, batch=2, process=process, processes=2) for process in range(2)]
    for step in range(3):
        one, (first, second) = whole[step], (half[step] for half in halves)
        torch.testing.assert_close(one.sam_pixels, torch.cat([first.sam_pixels, second.sam_pixels]), rtol=0, atol=0)
        torch.testing.assert_close(one.targets, torch.cat([first.targets, second.targets]), rtol=0, atol=0)
        assert one.language_tokens == first.language_tokens + second.language_tokens
        assert one.image_index == first.image_index + [2 + i for i in second.image_index]


def test_an_epoch_sees_every_image_once(parts) -> None:
    rows = len(parts[1])
    seen = [dataset(parts)._row(position) for position in range(2 * rows)]
    assert sorted(seen[:rows]) == sorted(seen[rows:]) == sorted(parts[1])
    assert seen[:rows] != seen[rows:]
    assert seen[:rows] != [dataset(parts, seed=2)._row(position) for position in range(rows)]


def test_one_target_for_each_seg_in_order(parts) -> None:
    data = dataset(parts)
    batch = data[0]
    seg = data.tokenizer.convert_tokens_to_ids(prompts.SEG_TOKEN)
    assert int((batch.ids == seg).sum()) == len(batch.targets) == len(batch.uniform)
    assert ((batch.targets >= 0) & (batch.targets <= 1)).all() and (batch.targets.flatten(1).max(1).values > 0.5).all()
    assert (batch.ids[batch.mask == 0] == 0).all() and (batch.labels[batch.mask == 0] == prompts.IGNORE).all()
    image = data.tokenizer.convert_tokens_to_ids(prompts.IMAGE_TOKEN)
    assert ((batch.ids == image).sum(1) == data.config.tokens_per_tile).all()
    answered = batch.labels[batch.labels != prompts.IGNORE]
    assert int((answered == seg).sum()) == len(batch.targets)


def test_points_are_drawn_when_asked(parts) -> None:
    assert dataset(parts)[0].uniform.shape[1:] == (0, 2)
    assert dataset(parts, mask_points=8)[0].uniform.shape[1:] == (8 * 3 + 2, 2)


def test_soft_target_is_the_share_of_a_cell() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[0:2, 0:3] = 1
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[0, 1] = 1.0, 0.5
    torch.testing.assert_close(soft_target(mask, 4), expected)


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
