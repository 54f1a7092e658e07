"""Loop 1 on videos: an object is described in one frame and segmented in others, by one caption."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ans.config.schema import LearntVideos
from ans.data.clips import ClipFrames
from ans.data.mask_samples import OfVideos
from ans.data.views import VIEWS
from ans.model import prompts
from ans.model.visual_prompt import region_cells
from ans.objectives.losses import hard_iou
from ans.objectives.passes import describe
from ans.tasks import loop1
from ans.tasks.loop1 import Settings
from ans.toy.world_videos import write_mevis
from tests.task_case import TaskCase


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    write_mevis(root, 5, (8, 4))
    return root


def task_of(case: TaskCase, films: Path, **changes: Any) -> loop1.Task:
    case.root = films
    case.model.eval()
    settings = {
        "sources": {},
        "videos": {"motion": LearntVideos(reader="mevis", folder="mevis", split="valid_u")},
        "frames": 3,
    }
    case.config.tasks["loop1"] = Settings(**(settings | {"top_k": 16, "noise": 0.0} | changes))
    return case.task("loop1")


def test_what_a_sample_is(case: TaskCase, films: Path) -> None:
    """Frames, masks and cells of the object that is drawn; the described frame is none of the others."""
    task = task_of(case, films)
    batch = task.batch(range(4))
    assert task.sizes() == {"motion (masklets)": 8} and len(task) == 8, "four objects each"
    assert batch.frames is not None and batch.counts["masks"] == 12 and batch.counts["objects"] == 4
    for n in range(4):
        _, sample = task.pool.at(n)
        (source,) = task.sources
        assert isinstance(source, OfVideos)
        clip, key = source.masklets[sample]
        found = source.open(sample, task.rng(n))
        assert clip.masks[key][clip.frames.index(found.path)] and len(found.frames) == 3
        for frame, soft in zip(found.frames, batch.targets.soft[3 * n : 3 * n + 3], strict=True):
            number = clip.frames.index(found.locators[frame])
            assert clip.frames[number] != found.path and ClipFrames(films, clip)[number] == found.opened[frame]
            assert torch.equal(soft, case.model.config.decoder.soft_target(torch.from_numpy(clip.mask(key, number))))
        assert batch.where[n] == (found.locators[found.frames[0]], "motion")
        pixels = case.model.config.family.pixels(found.described, 1).values
        assert torch.equal(batch.images.pixels[batch.describe_index[n]].values, pixels)
        for image, frame in zip(batch.frames[n], found.frames, strict=True):
            assert torch.equal(batch.images.sam[image], case.model.config.decoder.pixels(found.opened[frame]))
    alone = task.batch(range(2, 3))
    assert torch.equal(alone.targets.soft, batch.targets.soft[6:9]) and alone.questions == batch.questions[2:3]


def test_views_are_of_the_described_frame(case: TaskCase, films: Path) -> None:
    """The teacher reads it and its further views, each with the object's cells in it; what is segmented stays as it is."""
    plain, batch = (task_of(case, films, views=views).batch(range(3)) for views in (1, 2))
    assert not plain.views and len(batch.views) == 3 and batch.frames == plain.frames
    task, (_, view), family = task_of(case, films), VIEWS[:2], case.model.config.family
    for n, (image, cells) in enumerate(batch.views):
        found = task.sources[0].open(task.pool.at(n)[1], task.rng(n))
        assert torch.equal(batch.images.pixels[image].values, family.pixels(view.image(found.described), 1).values)
        mask = view.mask(found.objects[0].mask)
        assert torch.equal(cells, region_cells(torch.from_numpy(mask)[None], family.grid(*mask.shape, max_tiles=1).region)[0])
        assert image not in {*batch.describe_index, *(shown for of in batch.frames or [] for shown in of)}
    features = case.features(batch)
    with torch.no_grad():
        said = describe(case.model, features, batch, batch.views)[0]
        order = [place for n in range(3) for place in (batch.describe_index[n], batch.views[n][0])]
        both = [cells for n in range(3) for cells in (batch.cells[n], batch.views[n][1])]
        asked = [question for question in batch.describe_questions for _ in range(2)]
        assert said == case.model.caption_ids(features, order, both, asked, 12, 2)[0]


def test_a_long_video_takes_no_more_memory(case: TaskCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each clip the drawn frames are opened, and no others."""
    write_mevis(tmp_path, 5, (60, 9))
    opened: list[int] = []
    frame = ClipFrames.frame
    monkeypatch.setattr(ClipFrames, "frame", lambda self, number: (opened.append(number), frame(self, number))[1])
    for at in range(8):
        opened.clear()
        batch = task_of(case, tmp_path).batch(range(at, at + 1))
        assert len(opened) == 4 == len(batch.images.pixels) and len(batch.images.sam) == 3


def test_the_loss_by_hand(case: TaskCase, films: Path) -> None:
    """The teacher's caption of the one frame, asked about the others: one answer, one vector, a mask in each of them."""
    task = task_of(case, films, bridge="hard", denoising=0.0, mask_ratio=0.0, confidence=True, distillation=0.5)
    batch = task.batch(range(2))
    assert batch.frames is not None
    losses = case.losses(task, batch)
    model, features = case.model, case.features(batch)
    with torch.no_grad():
        said, _, confidence = model.caption_ids(features, batch.describe_index, batch.cells, batch.describe_questions, 12)
        visual, ious, entropies = model.image_tokens(features), [], []
        for n, images in enumerate(batch.frames):
            shown = "".join(model.template.image_string(features.visual[i].grid.tokens) for i in images)
            before, after = prompts.encode_gap(model.tokenizer, model.template, shown + batch.questions[n])
            answer = model.tokenizer.encode(batch.answers[n] + model.template.suffix, add_special_tokens=False)
            ids = torch.tensor([before + said[n] + after + answer])
            tokens = torch.cat([visual[i].tokens.flatten(0, 1) for i in images])
            out = model.vlm.language_model(
                inputs_embeds=model.vlm.embed(ids, tokens, model.image_token), output_hidden_states=True
            )
            (vector,) = model.text_hidden_fcs(out.hidden_states[-1][0][ids[0] == model.seg_token])
            for k, image in enumerate(images):
                logits = model.masks(features, torch.tensor([image]), vector[None]).low_res
                soft = batch.targets.soft[len(images) * n + k][None]
                ious.append(float(hard_iou(logits, soft)))
                p = logits.sigmoid().clamp(1e-7, 1 - 1e-7)
                entropies.append(confidence[n] * float(torch.nn.functional.binary_cross_entropy(p, soft)))
    assert float(losses.values["loop1_train_iou"]) == pytest.approx(sum(ious) / 6, abs=1e-4)
    assert float(losses.values["loop1_mask"]) == pytest.approx(sum(entropies) / 6, rel=1e-3)
    assert losses.example is not None and losses.example.logits.shape == losses.example.truth.shape == (2, 32, 32)
    assert torch.equal(losses.example.truth, batch.targets.soft[[0, 3]])


def test_the_gradient_runs_through_the_caption(case: TaskCase, films: Path) -> None:
    """And the reward of a caption is that of all its masks."""
    task = task_of(case, films, reward=0.5)
    losses = case.losses(task, task.batch(range(2)))
    reached = {name for name, gradient in case.gradients(losses).items() if gradient is not None and gradient.abs().max() > 0}
    assert float(losses.values["loop1_caption_gradient2"]) > 0 and "loop1_earned" in losses.values
    assert any("lora_B" in name for name in reached) and any("sam_mask_decoder" in name for name in reached)


def test_what_does_not_fit_is_refused(case: TaskCase, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="videos: have no captions"):
        task_of(case, films, bridge="given")
    monkeypatch.setattr(type(case.model.config.family), "videos", False)
    with pytest.raises(ValueError, match=r"train\.loop1\.videos: .* reads one image in a question"):
        task_of(case, films)
