"""Any usual form of an image is the same image to the model."""

import numpy as np
import pytest
import torch
from PIL import Image

from ans.model.preprocess import as_image
from ans.model.segmenter import Segmenter
from tests.pipeline import REPOSITORY

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(2, 0, 1)
FORMS = {
    "PIL": Image.fromarray(PIXELS),
    "PIL with alpha": Image.fromarray(np.dstack([PIXELS, np.full((40, 60), 255, np.uint8)])),
    "array": PIXELS,
    "tensor of bytes": CHANNELS_FIRST,
    "tensor in [0, 1]": CHANNELS_FIRST.float() / 255,
    "half precision": (CHANNELS_FIRST.float() / 255).half(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_image(form: str) -> None:
    found = as_image(FORMS[form])
    assert (found.mode, found.size) == ("RGB", (60, 40)) and (np.asarray(found) == PIXELS).all()


def test_grey() -> None:
    grey = PIXELS[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    for form in (Image.fromarray(grey), grey, torch.from_numpy(grey)[None], torch.from_numpy(grey)[None] / 255):
        assert (np.asarray(as_image(form)) == expected).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.astype(np.float32), r"found float32 \(40, 60, 3\)"),
        (PIXELS.transpose(2, 0, 1), r"found uint8 \(3, 40, 60\)"),
        (torch.from_numpy(PIXELS), r"expected a tensor \(3, h, w\) or \(1, h, w\), found \(40, 60, 3\)"),
        (CHANNELS_FIRST.float(), r"must lie in \[0, 1\], found 0 to 255"),
        (torch.full((3, 4, 4), float("nan")), r"must lie in \[0, 1\]"),
        (CHANNELS_FIRST.long(), "found torch.int64"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "more than 8 bits"),
        ("photo.jpg", "found str"),
    ],
)
def test_what_is_no_image(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_image(image)


def test_the_model_takes_them_all() -> None:
    model = Segmenter.from_pretrained(REPOSITORY / "weights" / "tiny")
    mask = np.zeros((1, 40, 60), np.uint8)
    mask[:, 5:25, 10:40] = 1
    texts = [["the left red circle"]]
    (expected,) = model.segment([FORMS["PIL"]], texts, 8)[0]
    caption = model.describe([FORMS["PIL"]], [mask], 8)
    for form in ("array", "tensor of bytes", "tensor in [0, 1]"):
        (found,) = model.segment([FORMS[form]], texts, 8)[0]
        assert found.answer == expected.answer and (found.mask == expected.mask).all()
        assert model.describe([FORMS[form]], [torch.from_numpy(mask)], 8) == caption
