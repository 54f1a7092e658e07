"""Images to pixels, without torchvision. InternVL's dynamic tiles and SAM2's direct resize follow the official Sa2VA code in
float32, the middle square for CLIP and SAM's longest side transformers' image processors."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


ImageLike = Image.Image | np.ndarray | Tensor
"""What `as_image` takes."""


def as_image(image: ImageLike) -> Image.Image:
    """Return an RGB image of 8 bits, from PIL's of any such mode; from an array (h, w, 3) or, grey, (h, w), uint8; or from a tensor
    (3, h, w) or, grey, (1, h, w), uint8 or floating point in [0, 1].

    Raises `ValueError` for any other shape, type or range.
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(f"image: mode {image.mode} has more than 8 bits per channel; bring it to 0..255 first")
        return image.convert("RGB")
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"image: expected PIL's, an array or a tensor, found {type(image).__name__}")
    shape, kind = tuple(image.shape), image.dtype
    if isinstance(image, Tensor):
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"image: expected a tensor (3, h, w) or (1, h, w), found {shape}")
        if image.is_floating_point():
            if not 0 <= image.min() <= image.max() <= 1:
                raise ValueError(f"image: a {kind} tensor must lie in [0, 1], found {image.min():g} to {image.max():g}")
            image = (image * 255).round().to(torch.uint8)
        image = image.permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy()
    elif image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 (h, w, 3) or (h, w), or a tensor (3, h, w) in [0, 1], found {kind} {shape}")
    return Image.fromarray(np.ascontiguousarray(image))


def tile_grid(width: int, height: int, image_size: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """Return (columns, rows) whose aspect ratio is nearest to the image's; a tie goes to more tiles if the image is large enough for
    them (InternVL's rule: its area exceeds half of the tiles' area)."""
    grids = {(i, n) for n in range(1, max_tiles + 1) for i in range(1, max_tiles + 1) if min_tiles <= i * n <= max_tiles}
    best, best_difference = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        difference = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * image_size**2 * columns * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best, best_difference = (columns, rows), difference
    return best


def resize(image: Image.Image, width: int, height: int, filter: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Resize horizontally, then vertically. Pillow up to 12 did it in this order, so it is what the released models were trained on;
    Pillow 13 starts with the cheaper pass, which moves up to a seventh of the values, by a few grey levels on photographs."""
    return image.resize((width, image.height), filter).resize((width, height), filter)


def tiles(image: Image.Image, image_size: int, min_tiles: int, max_tiles: int, use_thumbnail: bool) -> list[Image.Image]:
    """Cut an RGB image into `image_size` squares, row by row; with several, the whole image follows as a thumbnail."""
    columns, rows = tile_grid(image.width, image.height, image_size, min_tiles, max_tiles)
    resized = resize(image, columns * image_size, rows * image_size)
    boxes = [(c * image_size, r * image_size) for r in range(rows) for c in range(columns)]
    cut = [resized.crop((x, y, x + image_size, y + image_size)) for x, y in boxes]
    if use_thumbnail and len(cut) > 1:
        cut.append(resize(image, image_size, image_size))
    return cut


def sam_image(image: Image.Image, image_size: int) -> Image.Image:
    """Resize to a square without keeping the aspect ratio, as Sa2VA feeds SAM2."""
    return resize(image, image_size, image_size)


def bicubic(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the image resized as Qwen-VL's processors do it, by the arithmetic of tensors, which Pillow's differs from by a grey level or
    more."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()[None]
    resized = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)[0]
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())


def middle_square(image: Image.Image, side: int) -> Image.Image:
    """Return the image with its shorter edge resized to `side`, and of that the `side` x `side` pixels in the middle (CLIP)."""
    scale = side / min(image.size)
    width, height = (side if edge == min(image.size) else int(edge * scale) for edge in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    return resize(image, width, height).crop((left, top, left + side, top + side))


def longest_side(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (height, width) of an image whose longer edge is resized to `side`, the aspect ratio kept (SAM)."""
    scale = side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def normalise(images: list[Image.Image], mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Map RGB images of one size to (B, 3, H, W) float32, less `mean` and over `std` (ImageNet's by default)."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()
    return pixels.div_(255).sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
