"""Every intermediate of the official code's answers about videos, and of Sa2VA-i's, from the prompt to the masks.

Frames, texts, sizes and which tensors there are all come from the golden folder; a tensor of a run that no comparison has used is an
error, so that nothing recorded is passed over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ans.model import prompts
from ans.model.decoder import resized
from ans.model.decoders.sam2 import HF, ORIGINAL
from ans.model.inference import Query
from ans.model.memory import ConsistentTracker, Memory, Sam2Tracker
from ans.model.segmenter import Segmenter
from ans.model.video import choose_frames
from tests.golden_case import ROOT, GoldenCase, hf_pixels, same_masks

pytestmark = pytest.mark.usefixtures("as_recorded")

GOLDEN = GoldenCase(ROOT / "video")
RUNS = sorted(GOLDEN.meta["runs"])
KINDS = {"official": ("official", "first"), "sa2va_i": ("original_decoder", "uniform")}
LOGIT = {"f32": 1e-3, "hf": 5e-3}
"""A stored value that is rounded to bf16 may fall the other way: the golden folder's own suggestion."""
VALUE = 1e-4
STEP = {"f32": 0.0, "hf": 2**-7}
"""Of a value of the memory's maps, as a share of it: bf16's step."""


def frames_of(case: str) -> list[Image.Image]:
    count = GOLDEN.meta["cases"][case]["frames"]
    return [Image.open(GOLDEN.folder / "frames" / case / f"{number:05d}.png").convert("RGB") for number in range(count)]


def state_of(kind: str) -> dict[str, Tensor]:
    """The official folder's tensors, or those of a folder of Sa2VA-i, which has both decoders under names of its own."""
    state = GOLDEN.state("hf_state")
    if kind == "official":
        return state
    here = f"{HF}sam_mask_decoder."
    both = {name.replace(here, f"{HF}sam_mask_decoder_modified."): tensor for name, tensor in state.items()}
    return both | GOLDEN.state("sam2_original_decoder")


@dataclass
class Run:
    """What our code computed. Lists go by frame, first to last, where `written`, `chosen` and `given` do not go by call."""

    prompt: list[int]
    generated: list[int]
    hidden: Tensor
    vectors: Tensor
    low_res: list[Tensor] = field(default_factory=list)
    written: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    chosen: list[tuple[Any, Any]] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    read: dict[int, tuple[int, int]] = field(default_factory=dict)
    attention: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Segmenter]:
    place: Path = tmp_path_factory.mktemp("video")
    return {kind: Segmenter.from_pretrained(GOLDEN.write_model(place / kind, state_of(kind))) for kind in KINDS}


@pytest.fixture(scope="module")
def run(models: dict[str, Segmenter]) -> Iterator[Any]:
    yield lru_cache(maxsize=None)(lambda name: compute(models[name.split("/")[0]], name))


@torch.no_grad()
def compute(model: Segmenter, name: str) -> Run:
    kind, variant, case = name.split("/")
    propagation, choice = KINDS[kind]
    told = GOLDEN.meta["runs"][name]
    sam = model.sam.model
    with pytest.MonkeyPatch.context() as patch:
        if variant == "hf":  # mean, standard deviation and memory are rounded to bf16
            pixels = type(model.config.decoder).pixels
            patch.setattr(type(model.config.decoder), "pixels", lambda self, image: hf_pixels(pixels(self, image)))
            encode = sam.memory_encoder.forward
            patch.setattr(sam.memory_encoder, "forward", lambda *a, **k: rounded(encode(*a, **k)))
        ids: list[int] = []
        inputs = model.inputs
        patch.setattr(model, "inputs", lambda found, *a, **k: (ids.extend(found[0].tolist()), inputs(found, *a, **k))[1])
        chosen = choose_frames(told["frames"], choice, told.get("sample_num_frames", 5))
        assert chosen == sorted(set(told["lm_frames"]))
        video = model.read_video(frames_of(case), chosen)
        question = Query(0, told["text"].removeprefix("<image>\n"))
        (answer,) = model.answer(video.read, [question], told["max_new_tokens"])
        done = Run(ids, answer.ids, answer.seg_states, model.seg_embed(answer.seg_states))
        record(patch, sam, done)
        if len(done.vectors):
            done.low_res = list(model.propagate(video, done.vectors, propagation))
    return done


def rounded(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return found | {"vision_features": found["vision_features"].bfloat16().float()}


def record(patch: pytest.MonkeyPatch, sam: Any, done: Run) -> None:
    """Note what the memory is given and gives."""
    write, tokens, read, choose, prompt = (
        Memory.write, Memory.tokens, Memory.read, Sam2Tracker.choose, ConsistentTracker.prompt_masks
    )  # fmt: skip

    def noted_write(self: Memory, frame: int, coarse: Tensor, low_res: Tensor, pointer: Tensor, prompted: bool) -> None:
        write(self, frame, coarse, low_res, pointer, prompted)
        done.written[frame] = ((self.prompted if prompted else self.recent).maps[frame], pointer)

    def noted_read(self: Memory, frame: int, coarse: Tensor) -> Tensor:
        memory, places, pointers = tokens(self, frame)
        done.read[frame] = (len(memory), pointers)
        out = read(self, frame, coarse)
        done.attention[frame] = (memory, places, out.flatten(2).permute(2, 0, 1))
        return out

    def noted_choose(self: Sam2Tracker, decoder: Any, *rest: Any) -> Any:
        found = choose(self, decoder, *rest)
        done.chosen.append((decoder, found))
        return found

    def noted_prompt(self: ConsistentTracker, frame: int, levels: Any, masks: Tensor) -> Tensor:
        done.given.append(masks)
        return prompt(self, frame, levels, masks)

    patch.setattr(Memory, "write", noted_write)
    patch.setattr(Memory, "read", noted_read)
    patch.setattr(Sam2Tracker, "choose", noted_choose)
    patch.setattr(ConsistentTracker, "prompt_masks", noted_prompt)
    shrink = sam.mask_downsample.forward
    patch.setattr(sam.mask_downsample, "forward", lambda x: (done.inputs.append(x), shrink(x))[1])


class Recorded:
    """The golden tensors of one run; what was not asked for is left in `rest`."""

    def __init__(self, name: str) -> None:
        self.name, self.rest = name, {key for key in GOLDEN.tensors if key.startswith(f"{name}/")}

    def __call__(self, key: str) -> Tensor | None:
        whole = f"{self.name}/{key}"
        self.rest.discard(whole)
        return GOLDEN[whole] if whole in GOLDEN.tensors else None


def close(ours: Tensor, golden: Tensor | None, tolerance: float, what: str, share: float = 0.0) -> None:
    if golden is not None:
        assert ours.shape == golden.shape, what
        torch.testing.assert_close(ours.float(), golden, rtol=share, atol=tolerance, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.second
def test_every_recorded_value(models: dict[str, Segmenter], run: Any, name: str) -> None:
    kind, variant, case = name.split("/")
    told, ours, golden = GOLDEN.meta["runs"][name], run(name), Recorded(name)
    model = models[kind]
    logit = LOGIT[variant]
    assert ours.prompt == told["prompt_ids"]
    assert ours.generated == told["generated_ids"]
    assert len(ours.vectors) == told["n_masks"] == len(told["segs"])
    if told["n_masks"]:
        close(ours.hidden, golden("seg_hidden"), VALUE, "seg_hidden")
        close(ours.vectors, golden("seg_embedding"), VALUE, "seg_embedding")
    if (pixels := golden("pixel_values")) is not None:
        close(
            model.config.family.pixels(frames_of(case)[0], 1).values[: len(pixels)].view_as(pixels), pixels, 1e-5, "pixel_values"
        )
    kept = GOLDEN.meta["long_frames_kept"] if case == "long" else list(range(told["frames"]))
    ends = [0, told["frames"] - 1]
    for number, seg in enumerate(told["segs"]):
        part = f"seg{number}"

        def by_frame(values: list[Tensor], part: int = number) -> Tensor:
            return torch.stack([value[part] for value in values])

        assert {str(frame): list(counts) for frame, counts in ours.read.items()} == seg["memory_tokens_per_tracked_frame"]
        low_res = by_frame(ours.low_res)
        close(low_res[kept], golden(f"{part}/low_res"), logit, f"{part}/low_res")
        maps, pointers = (by_frame([ours.written[frame][i] for frame in range(told["frames"])]) for i in (0, 1))
        close(pointers[kept], golden(f"{part}/obj_ptr"), 1e-3, f"{part}/obj_ptr")
        some = ends if variant == "hf" or case == "long" else kept
        close(maps[some], golden(f"{part}/maskmem_features"), 1e-3, f"{part}/maskmem_features", STEP[variant])
        chosen = [found for decoder, found in ours.chosen if kind == "official" or decoder is getattr(model.sam.model, ORIGINAL)]
        if chosen:
            close(by_frame([found.ious for found in chosen]), golden(f"{part}/iou_scores"), VALUE * 10, f"{part}/iou_scores")
            close(by_frame([found.score for found in chosen]), golden(f"{part}/object_score"), logit, f"{part}/object_score")
        spatial = golden(f"{part}/maskmem_pos_enc")
        if spatial is not None:
            close(model.sam.model.memory_encoder.position_encoding(maps[:1]), spatial, VALUE, f"{part}/maskmem_pos_enc")
        frame = golden(f"{part}/attention/frame")
        if frame is not None:
            for values, key in zip(ours.attention[int(frame)], ("memory", "memory_pos", "out"), strict=True):
                one = values[:, number : number + 1] if values.shape[1] > 1 else values
                close(one, golden(f"{part}/attention/{key}"), 1e-3, f"{part}/attention/{key}")
        if kind == "sa2va_i":
            order = [sorted(set(told["lm_frames"])).index(frame) for frame in told["lm_frames"]]
            tuned = [found.low_res for decoder, found in ours.chosen if decoder is model.sam.model.sam_mask_decoder]
            close(by_frame(tuned)[order], golden(f"{part}/init_low_res"), logit, f"{part}/init_low_res")
            given = golden(f"{part}/init_masks")
            logits = resized(by_frame(tuned)[order][:, None], size(case))[:, 0].numpy()
            if given is not None:
                assert same_masks(by_frame(ours.given)[order].numpy(), unpacked(given, case), logits, logit)
            shrunk = golden(f"{part}/mask_inputs")
            if shrunk is not None:
                ours_inside = torch.stack([inside[number, 0] for inside in ours.inputs]).numpy() > 0
                assert (ours_inside != shrunk.numpy().astype(bool)).mean() < 1e-3, f"{part}/mask_inputs"
        masks = golden(f"{part}/masks")
        if masks is not None:
            logits = model.upscale(low_res, size(case)).numpy()
            assert same_masks(logits > 0, unpacked(masks, case), logits, logit), f"{part}/masks"
    assert not golden.rest


def size(case: str) -> tuple[int, int]:
    width, height = GOLDEN.meta["cases"][case]["size_w_h"]
    return height, width


def unpacked(bits: Tensor, case: str) -> np.ndarray:
    return np.unpackbits(bits.numpy(), axis=-1)[..., : size(case)[1]].astype(bool)


def test_runs_of_both_kinds_and_variants_are_there() -> None:
    assert {tuple(name.split("/")[:2]) for name in RUNS} == {(kind, variant) for kind in KINDS for variant in LOGIT}
    for name in RUNS:
        told = GOLDEN.meta["runs"][name]
        for key in ("seg_hidden", "seg_embedding") if told["n_masks"] else ():
            assert f"{name}/{key}" in GOLDEN.tensors
        for key in ("low_res", "obj_ptr", "maskmem_features", "masks") if told["n_masks"] else ():
            assert f"{name}/seg0/{key}" in GOLDEN.tensors


def test_questions_are_the_official_ones() -> None:
    template = prompts.TEMPLATES["qwen_chat"]
    seen = set()
    for told in GOLDEN.meta["cases"].values():
        text = told["text"].removeprefix("<image>\n")
        before, after = "Please segment ", "."
        if text.startswith(before):
            seen.add("expression")
            assert template.video_question(text.removeprefix(before).removesuffix(after)) == text
        elif text.endswith("Please respond with a segmentation mask."):
            seen.add("question")
            assert template.video_question(text.removesuffix(" Please respond with a segmentation mask.")[1:]) == text
    assert seen == {"expression", "question"}


@pytest.mark.parametrize(
    ("part", "found"),
    [("memory_encoder.out_proj.weight", "maskmem_features"), ("obj_ptr_proj.layers.0.weight", "obj_ptr"),
     ("memory_attention.layers.0.cross_attn_image.k_proj.weight", "low_res"), ("maskmem_tpos_enc", "low_res")],
)  # fmt: skip
def test_a_perturbed_weight_is_noticed(models: dict[str, Segmenter], part: str, found: str) -> None:
    """The tolerances are narrow enough for a memory module whose weight is 2 % off."""
    model, name = models["official"], next(name for name in RUNS if name.startswith("official/f32/track"))
    weight = model.sam.model.get_parameter(part)
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.02) if part != "maskmem_tpos_enc" else weight.copy_(weight.roll(1, 0))
        done = compute(model, name)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    count = GOLDEN.meta["runs"][name]["frames"]
    ours = {
        "maskmem_features": [done.written[frame][0][0] for frame in range(count)],
        "obj_ptr": [done.written[frame][1][0] for frame in range(count)],
        "low_res": [low_res[0] for low_res in done.low_res],
    }[found]
    with pytest.raises(AssertionError):
        close(torch.stack(ours), GOLDEN[f"{name}/seg0/{found}"], LOGIT["f32"], found)
