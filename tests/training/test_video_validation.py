"""Validation on clips: its numbers are those of the evaluation, of the first clips of the set; and which settings fit."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ans.config import Config, ConfigError, load
from ans.config.schema import VideoSet
from ans.config.training import ValidationSettings as Settings
from ans.data.clips import Clip, read
from ans.evaluation.videos import rows_of, summary
from ans.model.segmenter import Segmenter
from ans.toy.world_videos import write_mevis
from ans.training.hooks.curves import Curves
from ans.training.hooks.video_validation import VideoValidation
from tests import pipeline

SET = VideoSet(reader="mevis", folder="mevis", split="valid_u", propagation="none", frames_read=2)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    write_mevis(root, 5, (3, 2, 5))
    return root


@pytest.mark.second
def test_an_evaluation_of_the_first_clips(films: Path) -> None:
    model = Segmenter.from_pretrained(pipeline.REPOSITORY / "weights" / "tiny").train()
    curves, shown = Curves(None), []
    sinks: Any = SimpleNamespace(names=["dvclive"], show=lambda *one: shown.append(one))
    said: list[str] = []
    accelerator: Any = SimpleNamespace(process_index=0, num_processes=1, autocast=nullcontext)
    settings = Settings(split="motion_video", metric="jf", every=2, max_samples=2, max_new_tokens=16)
    trained = {"w": torch.nn.Parameter(torch.zeros(1))}
    hook = VideoValidation(
        SET, settings, Path(), films, model, trained, 2, curves, sinks, SimpleNamespace(write=said.append), accelerator
    )  # fmt: skip
    for step in (1, 2):
        values = {"loss": 1.0}
        curves.after(step, dict(values))
        hook.after(step, values)
    clips = [clip for clip in read("mevis", films, "mevis", "valid_u") if isinstance(clip, Clip)]
    assert [len(clip.frames) for clip in clips] == [3, 2, 5]
    model.eval()
    expected = summary([row for clip in clips[:2] for row in rows_of(model, films, clip, SET, 16)])
    assert values["val_jf"] == pytest.approx(expected["jf"] / 100) and 0 < values["val_jf"] < 1
    assert values["val_seg_rate"] == expected["seg_rate"] and hook.best is not None and hook.best["row"]["step"] == 2
    assert curves.rows["val_j"][-1][1] == pytest.approx(expected["j"] / 100) and "val_jf" in said[0]
    ((step, name, pictures),) = shown
    assert (step, name, len(pictures)) == (2, "answers", 2)


def test_without_known_masks_there_is_none(films: Path) -> None:
    blind, settings = SET.model_copy(update={"split": "valid"}), Settings(split="a_video", metric="jf")
    with pytest.raises(ValueError, match=r"train\.validation\.split: a_video has no clip whose masks are known"):
        VideoValidation(blind, settings, Path(), films, *[None] * 7)


@pytest.fixture(scope="module")
def config() -> Config:
    return load(pipeline.REPOSITORY / "params.yaml").changed({"evaluate.videos": {"motion": SET.model_dump()}})


def test_a_set_of_videos_is_no_index(config: Config) -> None:
    chosen = config.changed({"train.validation": {"split": "motion_video", "metric": "jf", "every": 5}})
    assert chosen.validation_videos() == SET and chosen.training_indexes() == config.training_indexes()
    assert set(chosen.clips_left_out()) == {"motion"} and config.clips_left_out() == {}
    for split, metric, reason in (
        ("motion_video", "ciou", "validation.metric: must be jf, for motion_video"),
        ("refcoco_val", "jf", "validation.metric: must be one of images'"),
        ("other_video", "jf", "validation.split: no index named 'other'"),
    ):
        with pytest.raises(ConfigError, match=reason):
            config.changed({"train.validation": {"split": split, "metric": metric, "every": 5}})
