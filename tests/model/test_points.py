"""Points and boxes: against the `sam2` package's own head, and against transformers' SAM with its own processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam.processing_sam import SamProcessor

from ans.model import inference
from ans.model.decoders.sam2 import Network
from ans.model.modules import SegmenterModules
from ans.model.places import Place
from ans.model.segmenter import Segmenter
from tests import lisa_case
from tests.model.test_sam2 import SIZES, network
from tests.pipeline import REPOSITORY

POINT = Place(points=[(10, 20)])
POINTS = Place(points=[(10, 20), (33.5, 7)], labels=[1, 0])
BOX = Place(box=(4, 6, 30, 35))
BOTH = Place(points=[(28, 30), (5, 30), (12, 12)], labels=[0, 1, 1], box=(4, 6, 30, 35))
PLACES = [POINT, POINTS, BOX, BOTH]
WIDTH, HEIGHT = 60, 40


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def noisy(model: Segmenter) -> Segmenter:
    """Prompt tokens beside which no embedding is too small to matter, and masks that have both values."""
    torch.manual_seed(4)
    for name, parameter in model.sam.named_parameters():
        if "prompt_encoder" in name or "mask_decoder" in name:
            torch.nn.init.normal_(parameter, float(parameter.ndim == 1 and "norm" in name), 1.2 / parameter[0].numel() ** 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def sa2va() -> Segmenter:
    """The tiny base, whose SAM2 has the random weights that its tests have."""
    model = Segmenter.from_pretrained(REPOSITORY / "weights" / "tiny")
    model.sam = network(SIZES["tiny"])
    return model


@pytest.fixture(scope="module")
def lisa(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return noisy(Segmenter.from_pretrained(lisa_case.write_model(tmp_path_factory.mktemp("lisa"))))


def centred(logits: Tensor) -> Tensor:
    return logits - logits.flatten(1).median(1).values[:, None, None]


def centre(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Half of each mask is true, though with random weights nearly all logits have one sign. Returns where the decoder's own logits
    will be, mask by mask."""
    upscale, low_res = SegmenterModules.upscale, list[Tensor]()

    def noted(self: SegmenterModules, logits: Tensor, size: tuple[int, int]) -> Tensor:
        low_res.extend(logits)
        return centred(upscale(self, logits, size))

    monkeypatch.setattr(SegmenterModules, "upscale", noted)
    return low_res


def compare(mask: np.ndarray, logits: Tensor, low_res: Tensor, theirs: Tensor) -> None:
    """A mask that was centred, with the logits (1, h, w) that it has to come from; and before that both at the decoder's size, where
    a small change of the place shows."""
    torch.testing.assert_close(low_res, theirs, rtol=0, atol=1e-5 * float(theirs.std()))
    expected = centred(logits)[0].numpy()
    sure = np.abs(expected) > 1e-3 * expected.std()
    assert sure.mean() > 0.98 and 0.4 < mask.mean() < 0.6 and np.array_equal(mask[sure], expected[sure] > 0)


def sam2s_own(sam: Network, pixels: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (S, S) and (S/4, S/4) that the package finds, and the predicted IoUs of its candidates. Coordinates as
    `SAM2ImagePredictor` has them: scaled on each axis by itself, a box as two points in front."""
    model = sam.model
    coordinates = [*np.reshape([] if place.box is None else place.box, (-1, 2)), *place.points]
    scaled = torch.tensor(np.array(coordinates) / (WIDTH, HEIGHT) * model.image_size, dtype=torch.float32)[None]
    kinds = torch.tensor([[*([] if place.box is None else [2, 3]), *place.on_object]], dtype=torch.int32)
    given = {"point_coords": scaled, "point_labels": kinds}
    _, features, _, sizes = model._prepare_backbone_features(model.forward_image(pixels[None]))
    *fine, coarse = (level.permute(1, 2, 0).view(1, -1, *size) for level, size in zip(features, sizes, strict=True))
    coarse = coarse + model.no_mem_embed.view(1, -1, 1, 1)
    several = model._use_multimask(True, given)
    _, _, ious, low_res, whole, _, score = model._forward_sam_heads(
        coarse, given, high_res_features=fine, multimask_output=several
    )
    assert score > 0, "else the package says that there is nothing"
    return whole[0, 0], low_res[0, 0], ious[0]


def test_masks_are_sam2s(sa2va: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form of place, on two images in another order than the batches are in."""
    images = [picture(WIDTH, HEIGHT), picture(WIDTH, HEIGHT, 1)]
    rows = [PLACES, [BOX, POINT, POINT]]
    low_res = centre(monkeypatch)
    read = sa2va.read(images)
    found = sa2va.segment_at(read, rows)
    chosen = set()
    for number, (image, row, masks) in enumerate(zip(images, rows, found, strict=True)):
        assert masks.shape == (len(row), HEIGHT, WIDTH) and masks.dtype == bool
        for place, mask in zip(row, masks, strict=True):
            with torch.no_grad():
                logits, theirs, ious = sam2s_own(sa2va.sam, sa2va.config.decoder.pixels(image), place)
            assert len(ious) == (3 if place is POINT else 1), "several candidates for a single point alone"
            chosen.add(int(ious.argmax()))
            expected = torch.nn.functional.interpolate(logits[None, None], (HEIGHT, WIDTH), mode="bilinear")[0]
            sa2va.segment_at(read, [[place] if other == number else [] for other in range(2)])
            compare(mask, expected, low_res[-1], theirs)
    assert chosen != {0}, "else the predicted IoU decides nothing"


def test_masks_are_sams(lisa: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own model with its own processor's coordinates, which keep the aspect ratio."""
    low_res = centre(monkeypatch)
    sam = lisa.sam.sam
    processor = SamProcessor(SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}))
    image = picture(WIDTH, HEIGHT)
    read = lisa.read([image])
    for place, mask in zip(PLACES, lisa.segment_at(read, [PLACES])[0], strict=True):
        given = processor(
            image,
            input_points=[[list(map(list, place.points))]] if place.points else None,
            input_labels=[[list(place.on_object)]] if place.points else None,
            input_boxes=None if place.box is None else [[list(place.box)]],
            return_tensors="pt",
        )
        sizes = given.pop("original_sizes"), given.pop("reshaped_input_sizes")
        with torch.no_grad():
            out = sam(**{name: value.float() if value.is_floating_point() else value for name, value in given.items()},
                      multimask_output=place is POINT)  # fmt: skip
        best = out.iou_scores[0, 0].argmax()
        (logits,) = processor.image_processor.post_process_masks(
            [out.pred_masks[0][:, best][:, None]],
            *(size.tolist() for size in sizes),
            binarize=False,
            pad_size={"height": 64, "width": 64},
        )
        lisa.segment_at(read, [[place]])
        compare(mask, logits[:, 0], low_res[-1], out.pred_masks[0, 0, best])


def test_an_image_is_encoded_once(sa2va: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words and places share what was read, and neither changes the other's answers."""
    image = picture(WIDTH, HEIGHT)
    words = sa2va.segment([image], [["red circle"]], 4)[0][0]
    read = sa2va.read([image])
    monkeypatch.setattr(Segmenter, "encode_pixels", None)
    together = sa2va.segment_at(read, [PLACES])[0]
    for place, mask in zip(PLACES, together, strict=True):
        assert np.array_equal(sa2va.segment_at(read, [[place]])[0][0], mask)
    again = sa2va.segment(read, [["red circle"]], 4)[0][0]
    assert (again.answer, again.masks.tolist()) == (words.answer, words.masks.tolist())
    assert sa2va.segment_at(read, [[]])[0].shape == (0, HEIGHT, WIDTH)


def test_a_place_is_described_by_its_mask(sa2va: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    read = sa2va.read([picture(WIDTH, HEIGHT), picture(WIDTH, HEIGHT, 1)])
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[5:9, 40:] = True
    masks = sa2va.segment_at(read, [[BOX], [POINT, POINTS]])
    asked: list[np.ndarray] = []
    cells = inference.region_cells
    monkeypatch.setattr(inference, "region_cells", lambda inside, grid: (asked.append(inside.numpy()), cells(inside, grid))[1])
    captions = sa2va.describe(read, [[drawn, BOX], [POINT, POINTS]], 8)
    assert np.array_equal(asked[0], [drawn, masks[0][0]]) and np.array_equal(asked[1], masks[1])
    assert captions == sa2va.describe(read, [np.stack([drawn, masks[0][0]]), masks[1]], 8)
    monkeypatch.setattr(Segmenter, "upscale", lambda _, logits, size: torch.full((len(logits), *size), -1.0))
    with pytest.raises(ValueError, match="^box 4,6,30,35: the mask decoder finds nothing there"):
        sa2va.describe(read, [[BOX], []], 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a place needs a box, or a point on the object"),
        ({"points": [(1, 2)], "labels": [0]}, "a place needs a box, or a point on the object"),
        ({"points": [(1, 2)], "labels": [1, 0]}, "labels: 2 for 1 points"),
        ({"points": [(1, 2)], "labels": [2]}, r"labels: \[2\]; 1 is on the object"),
        ({"points": [(1, 2, 3)]}, r"points: expected \(x, y\) each"),
        ({"box": (4, 4, 4, 9)}, "box 4,4,4,9: has no area"),
        ({"box": (4, 4, 2, 9)}, "box 4,4,2,9: has no area"),
        ({"box": (4, 4, 8, float("nan"))}, "box 4,4,8,nan: has no area"),
        ({"box": (4, 4, 8)}, "box 4,4,8: has no area"),
    ],
)
def test_what_is_no_place(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Place(**given)


@pytest.mark.parametrize(
    "place",
    [
        Place(points=[(WIDTH, 0)]),
        Place(points=[(0, HEIGHT)]),
        Place(points=[(-0.5, 0)]),
        Place(points=[(float("nan"), 0)]),
        Place(points=[(1, 1), (0, -1)], labels=[1, 0]),
        Place(box=(0, 0, WIDTH + 1, 9)),
        Place(box=(0, 0, 9, HEIGHT + 1)),
        Place(box=(-1, 0, 9, 9)),
        Place(box=(0, -1, 9, 9)),
    ],
    ids=str,
)
def test_places_outside_the_image(place: Place) -> None:
    with pytest.raises(ValueError, match=f"^{place}: outside the image, which is {WIDTH} x {HEIGHT} pixels"):
        place.check(HEIGHT, WIDTH)


def test_what_the_models_refuse(sa2va: Segmenter, lisa: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    for whole in (Place(points=[(0, 0), (WIDTH - 1, HEIGHT - 1)]), Place(box=(0, 0, WIDTH, HEIGHT))):
        whole.check(HEIGHT, WIDTH)
    read = sa2va.read([picture(WIDTH, HEIGHT)])
    with pytest.raises(ValueError, match="^point 60,1: outside the image"):
        sa2va.segment_at(read, [[POINT, Place(points=[(WIDTH, 1)])]])
    with pytest.raises(ValueError, match="^places: 2 lists for 1 images"):
        sa2va.segment_at(read, [[POINT], [POINT]])
    with pytest.raises(ValueError, match="^describe: LISA on LLaVA was not trained to describe regions"):
        lisa.describe([picture(WIDTH, HEIGHT)], [[POINT]])
    monkeypatch.delattr(Network, "decode_at")
    with pytest.raises(ValueError, match="mask decoder takes no points and no boxes"):
        sa2va.segment_at(read, [[POINT]])
