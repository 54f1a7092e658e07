"""Videos: what has to hold whatever the weights are, and what is refused. Values are compared with the official code's in
`test_parity_video.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ans.checkpoints.base import shard
from ans.evaluation.metrics import intersection_union, iou
from ans.model.decoders.sam2 import ORIGINAL
from ans.model.memory import ConsistentTracker, Memory
from ans.model.segmenter import Segmenter
from ans.model.video import choose_frames
from ans.toy.world_videos import film
from tests.golden_case import ROOT, GoldenCase
from tests.model.test_parity_video import frames_of, state_of

GOLDEN = GoldenCase(ROOT / "video")
TEXTS = ["ball moving right", "Which one falls?", "the square"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("video")
    return {kind: GOLDEN.write_model(place / kind, state_of(kind)) for kind in ("official", "sa2va_i")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Any]) -> dict[str, Segmenter]:
    return {kind: Segmenter.from_pretrained(folder) for kind, folder in folders.items()}


def masks(model: Segmenter, frames: Sequence[Any], texts: Sequence[str] = TEXTS, **settings: Any) -> list[list[np.ndarray]]:
    found = list(model.segment_video(frames, texts, max_new_tokens=8, **settings))
    assert all(len(row) == len(texts) for row in found)
    return [[one.masks for one in row] for row in found]


def same(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> bool:
    return all(np.array_equal(a, b) for f, s in zip(first, second, strict=True) for a, b in zip(f, s, strict=True))


def test_chosen_frames_by_hand() -> None:
    assert choose_frames(9, "first", 5) == [0, 1, 2, 3, 4]
    assert choose_frames(3, "first", 5) == [0, 1, 2]
    assert choose_frames(24, "uniform", 4) == [0, 7, 15, 23]
    assert choose_frames(3, "uniform", 5) == [0, 1, 2]
    assert choose_frames(9, "uniform", 1) == choose_frames(1, "uniform", 5) == [0]


@pytest.mark.second
def test_a_model_follows_the_way_that_it_can(models: dict[str, Segmenter]) -> None:
    frames = frames_of("track")
    assert same(masks(models["official"], frames), masks(models["official"], frames, propagation="official", choice="first"))
    consistent = masks(models["sa2va_i"], frames, propagation="original_decoder", choice="uniform")
    assert same(masks(models["sa2va_i"], frames), consistent)
    assert not same(consistent, masks(models["sa2va_i"], frames, propagation="official", choice="uniform"))


@pytest.mark.second
def test_several_expressions_get_what_each_gets_alone(models: dict[str, Segmenter], monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of two objects here, so that objects of one expression fall into two."""
    monkeypatch.setattr("ans.model.video.OBJECTS_AT_ONCE", 2)
    model, frames = models["sa2va_i"], frames_of("track")
    together = masks(model, frames)
    assert sum(map(len, together[0])) > 2
    for number, text in enumerate(TEXTS):
        assert same([[row[number]] for row in together], masks(model, frames, [text]))


def test_a_video_of_chosen_frames_alone_is_images(models: dict[str, Segmenter]) -> None:
    """The official inference never uses its memory there: each frame is as `none` prompts it."""
    frames = frames_of("short")
    assert same(masks(models["official"], frames), masks(models["official"], frames, propagation="none"))


def test_frames_as_images(models: dict[str, Segmenter]) -> None:
    model, frames = models["official"], frames_of("short")[:2]
    found = masks(model, frames, propagation="images")
    alone = model.segment(frames, [TEXTS] * 2, max_new_tokens=8)
    assert same(found, [[one.masks for one in row] for row in alone]) and any(len(one) for one in found[0])
    with pytest.raises(ValueError, match="frames: number 1 is"):
        masks(model, [frames[0], frames[1].resize((8, 8))], propagation="images")


def test_frames_come_once_and_in_order(models: dict[str, Segmenter]) -> None:
    class Counted(list[Image.Image]):
        asked: list[int] = []

        def __getitem__(self, number: Any) -> Any:
            self.asked.append(number)
            return super().__getitem__(number)

    frames = Counted(frames_of("track"))
    stream = models["sa2va_i"].segment_video(frames, TEXTS, max_new_tokens=8)
    assert frames.asked == [0, 2, 4, 6, 8]  # read before the first mask is asked for
    for _ in range(2):
        next(stream)
    assert frames.asked[5:] == [1]
    list(stream)
    assert frames.asked[5:] == [1, 3, 5, 7]


@pytest.mark.slow
def test_the_memory_keeps_no_more_than_it_reads(models: dict[str, Segmenter], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    read = Memory.read

    def noted(self: Memory, *rest: Any) -> Any:
        out = read(self, *rest)
        sizes.append((len(self.prompted.maps), len(self.recent.maps), len(self.recent.pointers)))
        return out

    monkeypatch.setattr(Memory, "read", noted)
    frames = frames_of("long") * 2
    for model in models.values():
        masks(model, frames, TEXTS[:1])
    assert max(sizes) == (5, 6, 15)


def test_no_seg_is_no_mask_in_any_frame(models: dict[str, Segmenter]) -> None:
    found = list(models["official"].segment_video(frames_of("silent"), ["a", "b"], max_new_tokens=1))
    assert [[one.masks.shape for one in row] for row in found] == [[(0, 32, 32)] * 2] * 2
    assert not any(one.mask.any() for row in found for one in row)
    assert list(models["official"].segment_video(frames_of("silent"), [])) == [[], []]


def test_frames_may_be_an_array(models: dict[str, Segmenter]) -> None:
    frames = frames_of("short")
    assert same(masks(models["official"], frames), masks(models["official"], np.stack([np.asarray(one) for one in frames])))


@pytest.mark.second
def test_both_decoders_are_kept(folders: dict[str, Any], models: dict[str, Segmenter], tmp_path) -> None:
    frames, model = frames_of("track"), models["sa2va_i"]
    expected = masks(model, frames, TEXTS[:1])
    model.save_pretrained(tmp_path / "saved")
    assert same(expected, masks(Segmenter.from_pretrained(tmp_path / "saved"), frames, TEXTS[:1]))
    shard(folders["sa2va_i"], tmp_path / "base")  # what stage `weights` makes of such a folder
    assert same(expected, masks(Segmenter.from_pretrained(tmp_path / "base"), frames, TEXTS[:1]))


@pytest.mark.parametrize("form", ["model folder", "hf names", "released names"])
@pytest.mark.second
def test_an_original_decoder_can_be_given(folders: dict[str, Any], models: dict[str, Segmenter], tmp_path, form: str) -> None:
    path = GOLDEN.folder / "sam2_original_decoder.safetensors"
    if form == "model folder":
        path = folders["sa2va_i"]
    elif form == "released names":
        state = {name.partition("sam2_model.")[2]: tensor for name, tensor in load_file(path).items()}
        path = tmp_path / "sam2_hiera_large.pt"
        torch.save({"model": state | {"image_encoder.other": torch.zeros(1)}}, path)
    model = Segmenter.from_pretrained(folders["official"])
    model.load_original_decoder(path)
    assert same(masks(model, frames_of("track"), TEXTS[:1]), masks(models["sa2va_i"], frames_of("track"), TEXTS[:1]))


def test_what_is_refused(models: dict[str, Segmenter], tmp_path) -> None:
    model, frames = models["official"], frames_of("track")
    with pytest.raises(
        ValueError, match="propagation: the model has no SAM2 decoder as it was before fine-tuning.*official, none"
    ):
        model.segment_video(frames, TEXTS, propagation="original_decoder")
    with pytest.raises(ValueError, match="propagation: there is no 'backwards'"):
        model.segment_video(frames, TEXTS, propagation="backwards")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choice: must be one of first, uniform"):
        model.segment_video(frames, TEXTS, choice="last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames_read: must be at least 1"):
        model.segment_video(frames, TEXTS, frames_read=0)
    with pytest.raises(ValueError, match="frames: there is none"):
        model.segment_video([], TEXTS)
    odd = [*frames[:7], frames[7].resize((30, 20)), *frames[8:]]
    with pytest.raises(ValueError, match="number 7 is 30 x 20 pixels, number 0 is 72 x 56"):
        masks(model, odd)
    with pytest.raises(ValueError, match="number 2 is 30 x 20 pixels"):
        model.segment_video([*frames[:2], odd[7]], TEXTS)
    save_file({"sam_mask_decoder.conv_s0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors: holds no SAM2 mask decoder of this size \(1 of"):
        model.load_original_decoder(tmp_path / "other.safetensors")


def test_a_model_without_videos_or_memory_says_so() -> None:
    lisa = Segmenter.from_pretrained("weights/lisa-tiny")
    with pytest.raises(
        ValueError, match="propagation: SAM has no memory of other frames that is supported; this model can do none, images"
    ):
        lisa.segment_video(frames_of("short"), TEXTS, propagation="official")
    with pytest.raises(ValueError, match="LISA on LLaVA reads one image in a question"):
        lisa.segment_video(frames_of("short"), TEXTS)
    with pytest.raises(ValueError, match="only a mask decoder with a memory"):
        lisa.load_original_decoder(GOLDEN.folder / "sam2_original_decoder.safetensors")


@pytest.mark.parametrize("bias", [-10.0, 0.0, 10.0])
@torch.no_grad()
def test_mask_prompts_are_sam2s_own(models: dict[str, Segmenter], bias: float) -> None:
    """Against `_use_mask_as_output` of the sam2 package: also for an object that the score denies, and for a mask without a pixel."""
    model = models["sa2va_i"]
    sam = model.sam.model
    original = getattr(sam, ORIGINAL)
    head = original.pred_obj_score_head.layers[-1].bias
    kept, tuned = head.clone(), sam.sam_mask_decoder
    given = torch.zeros(2, 56, 72, dtype=torch.bool)
    given[0, 10:40, 20:50] = True
    levels = model.sam.encode(model.config.decoder.pixels(frames_of("track")[0])[None])
    try:
        head += bias
        tracker = ConsistentTracker(model.sam, original)
        low_res = tracker.prompt_masks(0, levels, given)
        sam.sam_mask_decoder = original
        side = sam.image_size
        inside = torch.nn.functional.interpolate(given[:, None].float(), (side, side), mode="bilinear", antialias=True) >= 0.5
        fine = [
            part(level).expand(2, -1, -1, -1) for part, level in zip((original.conv_s0, original.conv_s1), levels, strict=False)
        ]
        _, _, _, expected, _, pointer, _ = sam._use_mask_as_output(levels[2].expand(2, -1, -1, -1), fine, inside.float())
    finally:
        head.copy_(kept)
        sam.sam_mask_decoder = tuned
    torch.testing.assert_close(low_res, expected[:, 0])
    torch.testing.assert_close(tracker.memory.prompted.pointers[0], pointer)


@pytest.mark.second
def test_the_tiny_base_follows_what_it_cannot_tell_apart() -> None:
    """Two objects alike that have passed each other: by the memory each expression still has its own, frame by frame the other's."""
    model, made = Segmenter.from_pretrained("weights/tiny"), film(11, 0, 10)
    texts, true = [text for text, _ in made.at_first], made.masks[-1, :2]
    ways = [
        list(model.segment_video(made.frames, texts, propagation=way, frames_read=1, max_new_tokens=16))
        for way in ("official", "images")
    ]
    by_memory, as_images = (frames[-1] for frames in ways)
    for own, other, remembered, seen in zip(true, true[::-1], by_memory, as_images, strict=True):
        assert iou(*intersection_union(remembered.mask, own)) > 0.7
        assert iou(*intersection_union(seen.mask, other)) > 0.7
