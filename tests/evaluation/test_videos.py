"""A variant on sets of videos, in this process: what it leaves equals what the metrics say of what the model answers."""

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ans.config import Config
from ans.config.schema import VideoSet
from ans.data.clips import Clip, ClipFrames, read
from ans.evaluation import videos
from ans.evaluation.video_metrics import score
from ans.evaluation.videos import annotated, evaluate_videos, rows_of, summary
from ans.model.inference import Segmentation
from ans.model.segmenter import Segmenter
from ans.report.results import decode
from ans.toy.world_videos import write_mevis, write_ref_davis, write_ref_youtube_vos, write_revos
from ans.workspace import Workspace
from tests import pipeline

SETS = {
    "motion": {"reader": "mevis", "folder": "mevis", "split": "valid_u", "propagation": "none", "frames_read": 3},
    "reason": {"reader": "revos", "folder": "revos", "split": "valid"},
    "blind": {"reader": "ref_youtube_vos", "folder": "ytvos", "split": "valid", "propagation": "none"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    write_mevis(root, 5, (8, 1, 7))
    write_revos(root, 5, (4, 5))
    write_ref_youtube_vos(root, 5, (3,))
    return root


@pytest.fixture(scope="module")
def config(world: Path) -> Config:
    return pipeline.small_config(world, evaluate__videos=SETS, evaluate__max_new_tokens=16)


def evaluated(folder: Path, config: Config) -> Workspace:
    workspace = Workspace(folder)
    workspace.variant("base").parent.mkdir(parents=True)
    workspace.variant("base").symlink_to((pipeline.REPOSITORY / "weights" / "tiny").resolve())
    evaluate_videos(config, "base", workspace)
    return workspace


@pytest.fixture(scope="module")
def done(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ANS_RUNS", raising=False)
        return evaluated(tmp_path_factory.mktemp("done"), config)


def rows(done: Workspace, name: str) -> list[dict[str, Any]]:
    lines = (done.predictions("base") / f"{name}_video.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def result(done: Workspace, name: str) -> dict[str, Any]:
    return json.loads((done.results("base") / f"{name}_video.json").read_text())


@pytest.mark.second
def test_each_expression_has_the_score_of_its_masks(world: Path, done: Workspace) -> None:
    clips = {one.name: one for one in read("mevis", world, "mevis", "valid_u") if isinstance(one, Clip)}
    found = rows(done, "motion")
    assert len(found) == sum(len(clip.expressions) for clip in clips.values())
    for row in found:
        clip = clips[row["clip"]]
        one = next(one for one in clip.expressions if one.id == row["id"])
        preds = [decode(counts, clip.height, clip.width) for counts in row["counts"]]
        expected = score(preds, [clip.target(one, t) for t in range(len(preds))])
        assert (row["j"], row["f"]) == pytest.approx((expected.j, expected.f), abs=1e-12)
    told = result(done, "motion")
    assert told["jf"] == pytest.approx(100 * np.mean([(row["j"] + row["f"]) / 2 for row in found]))
    assert (told["n"], told["clips"], told["skipped"]) == (len(found), 2, 2)
    assert told["jf_low"] <= told["jf"] <= told["jf_high"]
    model = Segmenter.from_pretrained("weights/tiny")
    clip = clips["v2"]
    texts = [one.text for one in clip.expressions]
    stream = list(model.segment_video(ClipFrames(world, clip), texts, propagation="none", frames_read=3, max_new_tokens=16))
    for row in (row for row in found if row["clip"] == "v2"):
        own = [answers[texts.index(row["text"])].masks[:1].any(0) for answers in stream]
        assert all(np.array_equal(decode(a, clip.height, clip.width), b) for a, b in zip(row["counts"], own, strict=True))


def test_revos_has_its_kinds_and_leaves_out_what_is_not_there(done: Workspace) -> None:
    found, told = rows(done, "reason"), result(done, "reason")
    assert told["n"] == len([row for row in found if row["kind"] != "absent"]) == len(found) - 2
    for kind in ("referring", "reasoning"):
        own = [round(100 * row["j"], 2) for row in found if row["kind"] == kind]
        assert told[f"j_{kind}"] == pytest.approx(np.mean(own)) and told[f"n_{kind}"] == len(own)
    assert told["r"] == pytest.approx((told["r_referring"] + told["r_reasoning"]) / 2)


def test_the_archive_is_as_the_server_takes_it(done: Workspace) -> None:
    found = rows(done, "blind")
    with zipfile.ZipFile(done.predictions("base") / "blind_video.zip") as archive:
        assert sorted(archive.namelist()) == [f"Annotations/v0/0/{name}.png" for name in ("00000", "00005", "00010")]
        for name, counts in zip(found[0]["names"], found[0]["counts"], strict=True):
            image = Image.open(BytesIO(archive.read(f"Annotations/v0/0/{name}.png")))
            assert image.mode == "L" and set(np.unique(image)) <= {0, 255}
            assert np.array_equal(np.asarray(image) > 0, decode(counts, found[0]["height"], found[0]["width"]))
    told = result(done, "blind")
    assert "jf" not in told and (told["n"], told["clips"]) == (1, 1)
    assert not (done.predictions("base") / "motion_video.zip").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on(config: Config, done: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANS_RUNS", raising=False)
    calls, original = [], videos.rows_of

    def failing(model: Segmenter, root: Path, clip: Clip, *rest: Any) -> Any:
        calls.append(clip.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(model, root, clip, *rest)

    monkeypatch.setattr(videos, "rows_of", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, config)
    evaluate_videos(config, "base", Workspace(tmp_path))
    assert len(calls) == 3 + 3  # of five clips two were kept
    for name in SETS:
        assert rows(Workspace(tmp_path), name) == rows(done, name)


def test_without_sets_nothing_is_done(config: Config, tmp_path: Path) -> None:
    evaluate_videos(config.changed({"evaluate.videos": {}}), "base", Workspace(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_answer_without_seg_counts_as_empty() -> None:
    row = {"clip": "a", "kind": "", "j": 0.0, "f": 0.0, "a": None, "r": None, "has_seg": False}
    found = summary([row, row | {"clip": "b", "j": 1.0, "f": 1.0, "has_seg": True}])
    assert (found["jf"], found["seg_rate"], found["n"]) == (50, 0.5, 2)


def test_a_set_is_checked(config: Config) -> None:
    with pytest.raises(ValueError, match=r"evaluate.videos.motion.reader: no reader named 'mvis'.*mevis"):
        config.changed({"evaluate.videos": {"motion": SETS["motion"] | {"reader": "mvis"}}})
    with pytest.raises(ValueError, match=r"propagation"):
        config.changed({"evaluate.videos": {"motion": SETS["motion"] | {"propagation": "best"}}})


def test_four_annotators_of_ref_davis(tmp_path: Path) -> None:
    """By hand: two of them are right, one names the objects the other way round, which the matching forgives, one says the same of both;
    each annotator's objects have one value, and the set's is the mean of the four."""
    write_ref_davis(tmp_path, 5, (3,))
    (clip,) = (one for one in read("ref_davis", tmp_path, "davis", "val") if isinstance(one, Clip))
    keys = sorted(clip.masks)
    assert len(clip.expressions) == 4 * len(keys)
    assert {row[0] for row in annotated(clip)} == {
        place for place, one in enumerate(clip.expressions) if one.objects == (keys[0],)
    }

    class Answers:
        """Logits 1 inside of what is meant; annotator 2 has the objects in reverse, annotator 3 the first one every time."""

        def segment_video(self, frames: ClipFrames, texts: list[str], **_: Any) -> Iterator[list[Segmentation]]:
            said = [(int(one.id) // 4, int(one.id) % 4) for one in clip.expressions]
            meant = [(i, len(keys) - 1 - i, 0)[max(0, annotator - 1)] for i, annotator in said]
            for frame in range(len(frames)):
                masks = np.stack([clip.mask(keys[i], frame) for i in meant])
                logits = torch.from_numpy(2.0 * masks - 1)
                yield [Segmentation("", mask[None], one[None]) for mask, one in zip(masks, logits, strict=True)]

    of = VideoSet(reader="ref_davis", folder="davis", split="val")
    found = sorted(rows_of(Answers(), tmp_path, clip, of, 1), key=lambda row: int(row["id"]))  # pyrefly: ignore[bad-argument-type]
    own = {number: [row["j_merged"] for row in found if int(row["id"]) % 4 == number] for number in range(4)}
    assert own[0] == own[1] == own[2] == [1.0] * len(keys) and [row["j"] for row in found if int(row["id"]) % 4 == 2] != own[2]
    # of the last the first object alone has a mask; the others' are right where they are not seen
    unseen = [np.mean([not clip.mask(key, frame).any() for frame in range(3)]) for key in keys]
    assert own[3] == pytest.approx([1.0, *unseen[1:]])
    told = summary(found)
    assert told["j_merged"] == pytest.approx(25 * sum(map(np.mean, own.values()))) and told["jf_merged"] > told["jf"]
