"""Training on clips: the official code's losses and gradients, what is drawn, a loss by hand, and what no gradient reaches."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ans.config.schema import LearntVideos
from ans.data.clips import Clip, checksum, draw_frames, draw_run, read
from ans.data.mixing import keyed_rng
from ans.model import prompts
from ans.model.adapters import select_trained
from ans.model.segmenter import Conversations, Segmenter
from ans.objectives import mask
from ans.objectives.batches import pad_right
from ans.tasks import clips
from ans.tasks.clips import conversation, question
from ans.toy.world_videos import write_mevis, write_ref_youtube_vos
from ans.training.loop import train
from ans.training.setup import checksums, load_tasks
from ans.training.state import describe
from stages import select
from tests import pipeline
from tests.golden_case import ROOT, GoldenCase
from tests.task_case import TaskCase

GOLDEN = GoldenCase(ROOT / "video")
TOLD = GOLDEN.meta["train"]
NAMES = sorted(TOLD["frames"], key=list(TOLD["frames"]).index)


# ------------------------------------------------------------------------------------------------- the official code's numbers


@pytest.fixture(scope="module")
def golden_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segmenter]:
    yield Segmenter.from_pretrained(GOLDEN.write_model(tmp_path_factory.mktemp("video") / "model")).eval()


def encoded(model: Segmenter, name: str, one_line_break: bool) -> tuple[list[int], list[int]]:
    """Ids and labels of a recorded conversation, made from its texts as the task makes them."""
    said = TOLD["conversation"][name]
    parts = model.template.instruction.split("{input}")
    asked = [turn[0].removeprefix(parts[0]).removesuffix(parts[1]).rpartition(">")[2] for turn in said]
    answers = [turn[1].removesuffix(model.template.suffix) for turn in said]
    tokens = TOLD["ids_" + name].count(model.image_token) // len(TOLD["frames"][name])
    turns = conversation(model.template, [tokens] * len(TOLD["frames"][name]), asked, answers)
    if not one_line_break:  # the recorded code is the older one, which has none before the question
        turns[0] = prompts.Turn(
            turns[0].question.replace(f"</img>\n{asked[0]}", f"</img>{asked[0]}"), turns[0].answer, separated=True
        )
    return prompts.encode_conversation(model.tokenizer, model.template, turns)


def test_losses_and_gradients_of_the_official_training(golden_model: Segmenter) -> None:
    model = golden_model
    model.requires_grad_(True)
    images, frames, rows, weights, targets = [], [], [], [], []
    for name in NAMES:
        numbers = TOLD["frames"][name]
        drawn = sorted(set(numbers))
        frames.append([len(images) + drawn.index(number) for number in numbers])  # a frame that was drawn twice is one image
        images += [Image.open(GOLDEN.folder / "frames" / name / f"{number:05d}.png").convert("RGB") for number in drawn]
        rows.append(encoded(model, name, one_line_break=False))
        assert rows[-1] == (TOLD[f"ids_{name}"], TOLD[f"labels_{name}"])
        width = images[-1].width
        masks = torch.from_numpy(np.unpackbits(GOLDEN[f"train/{name}/masks"].numpy(), axis=-1)[..., :width]).float()
        objects = len(masks) // len(numbers)
        small = F.interpolate(masks[:, None], size=GOLDEN["train/pred_low_res"].shape[-2:], mode="nearest")[:, 0]
        targets.append(small.unflatten(0, (objects, len(numbers))))
        weights.append(objects)
    features = model.encode_images(images, max_tiles=1)
    ids, labels, attention = pad_right(rows)
    out = model(features, Conversations(ids, labels, attention, [of[0] for of in frames], [None] * len(rows), frames=frames))
    assert len(out.seg_embeds) == sum(weights)
    shown = [of for of, objects in zip(frames, weights, strict=True) for _ in range(objects)]
    logits = model.masks_in(features, shown, out.seg_embeds).low_res.unflatten(0, (len(shown), -1))
    per_clip = logits.split(weights)  # (objects, frames, S/4, S/4) each
    forced = TOLD["results"]["full"]["pred_shape"][1]
    order = [[n % objects for n in range(forced)] for objects in weights]  # the official code repeats objects up to five
    pred = torch.cat([part[picked].transpose(0, 1) for part, picked in zip(per_clip, order, strict=True)])
    truth = torch.cat([part[picked].transpose(0, 1) for part, picked in zip(targets, order, strict=True)])
    assert list(pred.shape) == TOLD["results"]["full"]["pred_shape"]
    recorded = GOLDEN["train/pred_low_res"]
    torch.testing.assert_close(pred[:, : recorded.shape[1]], recorded, rtol=1e-4, atol=1e-3)
    language = out.language_loss / len(out.labels)
    pred, truth, points = pred.flatten(0, 1), truth.flatten(0, 1), GOLDEN["train/points"]
    forms = {
        "full": (pred.flatten(1), truth.flatten(1)),
        "points": (mask.sample(pred, points), mask.sample(truth, points)),
    }
    trained = {
        model.config.keys.to_hf_name(name, "model"): parameter
        for name, parameter in model.named_parameters()
    }  # fmt: skip
    for form, (flat, wanted) in forms.items():
        told = TOLD["results"][form]
        entropy, dice = 2.0 * mask.cross_entropy(flat, wanted).mean(), 0.5 * mask.dice(flat, wanted).mean()
        assert float(entropy) == pytest.approx(told["losses"]["loss_mask"], abs=1e-4), form
        assert float(dice) == pytest.approx(told["losses"]["loss_dice"], abs=1e-4), form
        assert float(language) == pytest.approx(told["losses"]["llm_loss"], abs=1e-4), form
        loss = entropy + dice + language
        found = dict(
            zip(trained, torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True), strict=True)
        )
        groups = {"language_model": "language_model.", "mlp1": "mlp1.", "text_hidden_fcs": "text_hidden_fcs."}
        groups |= {"sam_mask_decoder": "grounding_encoder.sam2_model.sam_mask_decoder."}
        for group, prefix in groups.items():
            norm = float(torch.stack([g.norm() for name, g in found.items() if name.startswith(prefix) and g is not None]).norm())
            assert norm == pytest.approx(told["grad_norm_by_group"][group], rel=1e-3), (form, group)
        if form == "points":
            continue
        compared = 0
        for name, norm in told["grad_norms"].items():
            gradient = found[name]
            assert gradient is not None, name
            assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-3), name
            if f"train/grad/{name}" in GOLDEN.tensors:
                torch.testing.assert_close(gradient, GOLDEN[f"train/grad/{name}"], rtol=1e-3, atol=1e-3)
                compared += 1
        assert compared == sum(key.startswith("train/grad/") for key in GOLDEN.tensors) > 0
        memory = [
            name for name, gradient in found.items()
            if gradient is not None and any(part in name for part in ("mem", "obj_ptr", "mask_downsample"))
        ]  # fmt: skip
        assert memory == told["memory_parameters_with_grad"]


def test_a_question_follows_the_frames_after_one_line_break(golden_model: Segmenter) -> None:
    ids, _ = encoded(golden_model, NAMES[0], one_line_break=True)
    old = TOLD[f"ids_{NAMES[0]}"]
    (line_break,) = golden_model.tokenizer.encode("\n", add_special_tokens=False)
    last = len(old) - 1 - old[::-1].index(golden_model.image_last)
    assert ids == [*old[: last + 1], line_break, *old[last + 1 :]]


# ------------------------------------------------------------------------------------------------------------ what is drawn


def test_frames_are_drawn_as_the_official_training_does() -> None:
    """Without replacement where there are more than frames + 1, else with."""
    many = [draw_frames(7, 5, keyed_rng(1, i)) for i in range(200)]
    assert all(len(set(of)) == 5 and of == sorted(of) and of[-1] < 7 for of in many)
    assert {number for of in many for number in of} == set(range(7)) and len(set(map(tuple, many))) == 21
    few = [draw_frames(6, 5, keyed_rng(1, i)) for i in range(200)]
    assert all(len(of) == 5 and of == sorted(of) for of in few) and any(len(set(of)) < 5 for of in few)
    assert draw_frames(1, 5, keyed_rng(1, 0)) == [0] * 5


def test_a_memory_goes_through_neighbouring_frames() -> None:
    found = [draw_run(9, 4, keyed_rng(1, i)) for i in range(200)]
    steps = {tuple(np.diff(of)) for of in found}
    assert steps == {(1, 1, 1), (2, 2, 2)} and {number for of in found for number in of} == set(range(9))
    assert {tuple(draw_run(5, 4, keyed_rng(1, i))) for i in range(50)} == {(0, 1, 2, 3), (1, 2, 3, 4)}
    assert draw_run(1, 4, keyed_rng(1, 0)) == [0] * 4


def test_forms_of_the_question() -> None:
    template = prompts.TEMPLATES["qwen_chat"]

    def asked(text: str, lower: bool = True) -> str:
        return question(template, text, lower, keyed_rng(0)).translate({0xFDD0: None, 0xFDD1: None})

    assert asked("Which One moves?") == "Which One moves?"
    wordings = (*template.questions, "Please segment {}.")
    used = wordings[keyed_rng(0).integers(len(wordings))]
    assert asked(" The Dr. Who. ") == used.format("the dr who")
    assert asked("A Cat. It runs.", lower=False) == used.format("A Cat. It runs.")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    write_mevis(root, 5, (8, 7, 3))
    write_ref_youtube_vos(root, 5, (8, 3))
    return root


SOURCES = {
    "motion": LearntVideos(reader="mevis", folder="mevis", split="valid_u"),
    "objects": LearntVideos(reader="ref_youtube_vos", folder="ytvos", split="train", repeats=2.0),
}


def task_of(case: TaskCase, films: Path, train: dict[str, Any] | None = None, **changes: Any) -> clips.Task:
    case.root = films
    case.model.eval()  # dropout would differ from run to run
    settings = {"enabled": True, "sources": SOURCES, "frames": 3, "expressions": 2} | changes
    case.config.tasks["clips"] = clips.Settings(**settings)
    return case.task("clips", train)


def test_a_sample_is_a_function_of_its_position(case: TaskCase, films: Path) -> None:
    task = task_of(case, films)
    whole, parts = task.batch(range(4)), [task_of(case, films).batch(range(i, i + 1)) for i in (3, 1)]
    for part, at in zip(parts, (3, 1), strict=True):
        each = slice(6 * at, 6 * at + 6)
        assert torch.equal(part.targets.soft, whole.targets.soft[each])
        assert torch.equal(part.targets.uniform, whole.targets.uniform[each])
        assert torch.equal(part.ids[0], whole.ids[at][: part.ids.shape[1]])
        shown = torch.stack([whole.images.sam[i] for i in whole.frames[at]])
        assert torch.equal(torch.stack([part.images.sam[i] for i in part.frames[0]]), shown)
    assert len(task) == 3 + 2 * 2 and task.sizes() == {"motion (clips)": 3, "objects (clips)": 2}
    assert not torch.equal(task.batch(range(7, 11)).ids, whole.ids)


def test_a_frame_drawn_twice_is_encoded_once(case: TaskCase, films: Path) -> None:
    task = task_of(case, films, frames=6, sources={"motion": SOURCES["motion"]})
    batch = task.batch(range(3))
    assert {len(of) for of in batch.frames} == {6}
    assert len(batch.images.pixels) == len(batch.images.sam) == len({i for of in batch.frames for i in of}) < 18
    assert batch.counts["masks"] == 36 and batch.counts["objects"] == 6
    assert all(len(one.values) == 1 for one in batch.images.pixels), "a tile a frame"


def test_the_loss_by_hand(case: TaskCase, films: Path) -> None:
    """Clip by clip, expression by expression, frame by frame, each through the model's single parts; the mean over all."""
    task = task_of(case, films, {"mask_points": 0})
    batch = task.batch(range(3))
    losses = case.losses(task, batch)
    model, features = case.model, case.features(batch)
    visual, total, dice, iou, number, language, labels_seen = model.image_tokens(features), 0.0, 0.0, 0.0, 0, 0.0, 0
    with torch.no_grad():
        for row, frames in enumerate(batch.frames):
            there = batch.mask[row].bool()
            ids, labels = batch.ids[row][there], batch.labels[row][there]
            tokens = torch.cat([visual[i].tokens.flatten(0, 1) for i in frames])
            embeds = model.vlm.embed(ids[None], tokens, model.image_token)
            out = model.vlm.language_model(inputs_embeds=embeds, output_hidden_states=True)
            language += float(F.cross_entropy(out.logits[0, :-1], labels[1:], reduction="sum"))
            labels_seen += int((labels != -100).sum())
            vectors = model.text_hidden_fcs(out.hidden_states[-1][0][ids == model.seg_token])
            assert len(vectors) == 2
            for vector in vectors:
                for image in frames:
                    logits = model.masks(features, torch.tensor([image]), vector[None]).low_res[0]
                    soft = batch.targets.soft[number]
                    probability = logits.sigmoid()
                    total += float(F.binary_cross_entropy(probability.clamp(1e-7, 1 - 1e-7), soft))
                    dice += float(1 - (2 * (probability * soft).sum() + 1) / (probability.sum() + soft.sum() + 1))
                    inside, meant = logits > 0, soft > 0.5
                    union = int((inside | meant).sum())
                    iou += int((inside & meant).sum()) / union if union else 1.0
                    number += 1
    assert number == len(batch.targets.soft) == 18
    assert any(not soft.any() for soft in batch.targets.soft), "an object that is not seen counts"
    found = {name: float(value) for name, value in losses.values.items()}
    assert found["clips_mask"] == pytest.approx(total / 18, rel=1e-3)
    assert found["clips_dice"] == pytest.approx(dice / 18, rel=1e-4)
    assert found["clips_train_iou"] == pytest.approx(iou / 18, abs=1e-4)
    assert found["clips_language"] == pytest.approx(language / labels_seen, rel=1e-4)
    weights = case.config.train.loss
    expected = (
        weights.mask * found["clips_mask"] + weights.dice * found["clips_dice"] + weights.language * found["clips_language"]
    )
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-5)


def test_targets_are_the_masks_of_the_frames(case: TaskCase, films: Path) -> None:
    task = task_of(case, films, sources={"motion": SOURCES["motion"]}, frames=20, expressions=1)
    by_name = {clip.name: clip for clip in task.clips[0]}
    _, sample = task.pool.at(0)
    clip = task.clips[0][sample]
    rng = task.rng(0)
    numbers = draw_frames(len(clip.frames), 20, rng)
    one = clips.taught(clip)[int(rng.integers(len(clips.taught(clip)), size=1)[0])]
    batch = task.batch(range(1))
    for number, soft in zip(numbers, batch.targets.soft, strict=True):
        assert torch.equal(soft, case.model.config.decoder.soft_target(torch.from_numpy(clip.target(one, number))))
    assert by_name[clip.name] is clip


def test_gradients_reach_the_trained_parts_and_no_memory(case: TaskCase, films: Path) -> None:
    task = task_of(case, films)
    losses = case.losses(task, task.batch(range(2)))
    reached = {name for name, gradient in case.gradients(losses).items() if gradient is not None and gradient.abs().max() > 0}
    for part in ("lora_B", "mlp1", "text_hidden_fcs", "sam_mask_decoder"):
        assert any(part in name for name in reached), part
    assert not any("mem" in name or "obj_ptr" in name for name in case.trained)


# ------------------------------------------------------------------------------------------------------------------- memory


def test_followed_frames_are_what_sam2_itself_makes_of_them(case: TaskCase, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the `sam2` package's own tracking, one object at a time: what it stores, reads, and where it attends."""
    task = task_of(case, films, frames=2, followed=3, sources={"motion": SOURCES["motion"]})
    batch = task.batch(range(1, 2))
    assert batch.read == [0, 4] and [len(of) for of in batch.frames] == [5] and [len(of) for of in batch.shown] == [2]
    assert batch.counts == {"masks": 10, "objects": 2, "tokens": batch.counts["tokens"]} and len(batch.targets.soft) == 10
    (images,), features, model = batch.frames, case.features(batch), case.model
    sam = model.sam.model
    vectors = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = clips.followed(model, features, vectors, images, batch.read).unflatten(0, (2, 5))
        for vector, logits in zip(vectors, found, strict=True):
            known: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
            for t in (0, 4, 1, 2, 3):
                levels = [level[images[t]][None] for level in features.levels]
                coarse, sizes = levels[2].flatten(2).permute(2, 0, 1), [level.shape[-2:] for level in levels]
                places = sam.image_encoder.neck.position_encoding(levels[2]).flatten(2).permute(2, 0, 1)
                sparse, dense = model.sam.padding_prompt(1)
                if t in batch.read:
                    sparse = torch.cat([sparse, vector[None, None]], dim=1)
                    seen = levels[2] + sam.no_mem_embed.view(1, -1, 1, 1)
                else:
                    seen = sam._prepare_memory_conditioned_features(t, False, [coarse], [places], sizes[-1:], known, 5)
                masks, ious, tokens, score = sam.sam_mask_decoder(
                    image_embeddings=seen, image_pe=sam.sam_prompt_encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense, multimask_output=True, repeat_image=False,
                    high_res_features=[sam.sam_mask_decoder.conv_s0(levels[0]), sam.sam_mask_decoder.conv_s1(levels[1])],
                )  # fmt: skip
                best = int(ious[0].argmax())
                torch.testing.assert_close(masks[0, best], logits[t], rtol=1e-4, atol=1e-4)
                side = (sam.image_size, sam.image_size)
                large = F.interpolate(masks[:, best : best + 1], size=side, mode="bilinear", align_corners=False)
                stored, where = sam._encode_new_memory([coarse], sizes[-1:], large, score, False)
                pointer = sam.obj_ptr_proj(tokens[:, best]) if float(score) > 0 else sam.no_obj_ptr
                known["cond_frame_outputs" if t in batch.read else "non_cond_frame_outputs"][t] = {
                    "maskmem_features": stored, "maskmem_pos_enc": where, "obj_ptr": pointer,
                }  # fmt: skip
    # its logits are compared with the targets of the same frames
    monkeypatch.setattr(clips, "followed", lambda *_: 20 * batch.targets.soft - 10)
    assert float(case.losses(task, batch).values["clips_train_iou"]) == pytest.approx(1.0)


@pytest.mark.parametrize("memory", [False, True])
def test_the_memory_is_trained_if_its_group_is(case: TaskCase, films: Path, memory: bool) -> None:
    """All tensors of the group, by each of the frames that follow; frozen, the memory passes the gradient on."""
    task = task_of(case, films, frames=1, followed=2, expressions=1)
    groups = ("lora", "proj", "fcs", "sam2_decoder", *(["memory"] if memory else []))
    before = {name: p.requires_grad for name, p in case.model.named_parameters()}
    try:
        trained = select_trained(case.model, groups)
        batch = task.batch(range(1))
        gradients = torch.autograd.grad(case.losses(task, batch).total, list(trained.values()), allow_unused=True)
    finally:
        for name, parameter in case.model.named_parameters():
            parameter.requires_grad_(before[name])
    reached = {name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None and gradient.any()}
    of_memory = {name for name in trained if any(part in name for part in ("memory_", "obj_ptr", "maskmem"))}
    assert bool(of_memory) == memory and not any("no_mem" in name or "mask_downsample." in name for name in trained)
    # by the score either the pointer or its absence counts; a bias of all keys alike changes no attention
    missed = {name for name in of_memory - reached if ".k_proj.bias" not in name}
    assert not missed or all("obj_ptr" in name for name in missed), missed
    for part in ("lora_B", "mlp1", "text_hidden_fcs", "sam_mask_decoder"):
        assert any(part in name for name in reached), part


# -------------------------------------------------------------------------------------------------- what is read, and left out


def test_evaluated_clips_are_left_out_and_what_is_read_is_told(case: TaskCase, films: Path) -> None:
    sources = {name: of.model_dump() for name, of in SOURCES.items()}
    blind = {"reader": "ref_youtube_vos", "folder": "ytvos", "split": "valid"}  # its one video is the first of train, copied

    def made(**more: object) -> clips.Task:
        config = pipeline.small_config(case.root, train__clips__enabled=True, train__clips__sources=sources, **more)
        config.paths.__dict__["root"] = str(films)
        for name in ("referring", "loop1", "loop2"):
            config.tasks.pop(name, None)
        task = load_tasks(config, case.indexes.workspace, case.model, first_process=False)["clips"]
        assert isinstance(task, clips.Task)
        return task

    free, held = made(), made(evaluate__videos={"blind": blind})
    assert free.left_out == 0 and held.left_out == 1
    assert any(one.objects == () for clip in free.clips[0] for one in clips.taught(clip)), "one of nothing is learnt"
    assert [clip.name for clip in free.clips[1]] == ["v0", "v1"] and [clip.name for clip in held.clips[1]] == ["v1"]
    whole = [clip for clip in read("mevis", films, "mevis", "valid_u") if isinstance(clip, Clip)]
    assert free.checksums()["motion (clips)"] == held.checksums()["motion (clips)"] == checksum(whole)
    assert free.checksums()["objects (clips)"] != held.checksums()["objects (clips)"]
    told = [describe(pipeline.small_config(films), "", [], checksums({"clips": task}), 1) for task in (free, held)]
    assert {key for key in told[0] if told[0][key] != told[1][key]} == {"the contents of objects (clips)"}, (
        "else it is another run"
    )


def test_dvc_is_told_what_is_read(small_world: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage `select` names the sets that are learnt from and those left out; without the task neither is read."""
    workspace = pipeline.beside(small_world, tmp_path)
    monkeypatch.chdir(tmp_path)
    sets = {"motion": {"reader": "mevis", "folder": "mevis", "split": "valid_u"}}
    blind = {"blind": {"reader": "ref_youtube_vos", "folder": "ytvos", "split": "valid"}}

    def told(enabled: bool) -> dict[str, str]:
        changes = {"train__clips__enabled": enabled, "train__clips__sources": sets, "evaluate__videos": blind}
        pipeline.write_params(tmp_path, pipeline.small_values(films, **changes))
        select.main()
        return json.loads(workspace.selected("train").read_text())

    off, on = told(False), told(True)
    assert on.items() > off.items() and on.keys() - off.keys() == {"clips: motion", "clips left out: blind"}
    before = on["clips: motion"]
    path = films / "mevis" / "valid_u" / "meta_expressions.json"
    content = path.read_text()
    try:
        path.write_text(content.replace("both that cross", "both that meet"))
        assert told(True)["clips: motion"] != before
    finally:
        path.write_text(content)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": {}}, "sources: names no set of videos"),
        (
            {"sources": {"a": LearntVideos(reader="mevis", folder="mevis", split="valid")}},
            r"train\.clips\.sources\.a: split 'valid' .* no clip",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_refused(case: TaskCase, films: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task_of(case, films, **changes)


def test_a_family_that_reads_no_videos_is_refused(case: TaskCase, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(case.model.config.family), "videos", False)
    with pytest.raises(ValueError, match=r"train\.clips: .* reads one image in a question"):
        task_of(case, films)


@pytest.mark.slow
def test_a_training_lowers_the_loss(small_world: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `train()`, on clips alone; the manifest says what was read."""
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))
    sources = {"motion": SOURCES["motion"].model_dump()}
    off: dict[str, object] = {f"train__{name}__enabled": False for name in ("referring", "loop1", "loop2")}
    off |= {"train__steps": 40, "train__batch": 2, "train__accumulation": 1, "train__lr": 6e-4, "train__schedule": "constant"}
    task = {"train__clips__enabled": True, "train__clips__frames": 3, "train__clips__expressions": 4}
    config = pipeline.small_config(films, **off, **task, train__clips__sources=sources, train__warmup=0.0)
    workspace = pipeline.beside(small_world, tmp_path / "here")
    train(config, workspace)
    lines = (workspace.training / "plots" / "loss.tsv").read_text().splitlines()
    losses = [float(line.split("\t")[1]) for line in lines[1:]]
    assert len(losses) == 40 and np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5]), losses
    manifest = (workspace.checkpoint / "manifest.json").read_text()
    assert checksum([c for c in read("mevis", films, "mevis", "valid_u") if isinstance(c, Clip)]) in manifest
