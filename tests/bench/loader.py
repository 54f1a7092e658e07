"""Speed of what a training sample costs per core: `python -m tests.bench.loader [--quick]`.

over_bare   samples per second of the loader (a record from its index, image opened below the root, SAM's resize, tiles, mask)
            over bare Pillow and pycocotools on the same files (CPU time in one process, the best of several turns)
images_per_s  what one core prepares for training: the same and normalising, in images a second; the table has its parts
need_per_s    what an H100 takes at 40 % of its data sheet's bf16 peak, by arithmetic: a supervised sample of Sa2VA-4B, an image of this
              size with 5 expressions. Operations: the language model's linear layers forward and backward, the vision encoder's forward;
              SAM2 and attention are not counted, so the need is less
cores         need_per_s over images_per_s: the loader's processes for each such GPU

Images are JPEGs of 1500 x 2250 pixels, as SA-1B's; tiles and sizes are those of the released models (12 of 448 pixels, SAM at
1024).
"""

import argparse
import json
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from ans.data import masks
from ans.data.arrow import read_index
from ans.data.matching import record_image, region_mask
from ans.data.records import ImageRecord, Region
from ans.model.config import ModelConfig
from ans.model.preprocess import normalise, sam_image, tiles
from ans.planning import memory
from ans.planning.outlook import PEAK, TURN, flop
from ans.planning.released import RELEASED
from tests.bench import add_scales
from tests.indexes import write_records

WIDTH, HEIGHT = 2250, 1500
SAM, TILE, TILES = 1024, 448, 12


def publish(root: Path, images: int) -> list[tuple[str, dict[str, object]]]:
    """Images with one mask each and their index; returns (path, RLE) of each."""
    found, records = [], []
    for number in range(images):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (30, 45, 3), dtype=np.uint8)).resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (HEIGHT, WIDTH, 1), dtype=np.int16)
        content = BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
        (root / f"{number}.jpg").write_bytes(content.getvalue())
        y, x = np.ogrid[:HEIGHT, :WIDTH]
        mask = (x - rng.integers(WIDTH)) ** 2 + (y - rng.integers(HEIGHT)) ** 2 < rng.integers(40, 500) ** 2
        counts = masks.from_array(mask)
        region = Region(number, "train", "", *masks.measure(counts, HEIGHT, WIDTH), counts)
        records.append(ImageRecord(number, f"{number}.jpg", WIDTH, HEIGHT, (region,)))
        found.append((str(root / f"{number}.jpg"), {"size": [HEIGHT, WIDTH], "counts": counts.encode("ascii")}))
    write_records(root / "index", records, {"source": "x", "folder": "x", "reader": "sav", "root_listing": "x"})
    return found


def ours(root: Path) -> int:
    found, pixels = read_index(root / "index"), 0
    for number in range(len(found)):
        record = found.record(number)
        image = record_image(root, record)
        pixels += sam_image(image, SAM).width + len(tiles(image, TILE, 1, TILES, True))
        pixels += int(region_mask(record, record.regions[0])[0, 0])
    return pixels


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, image.height), Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)


def bare(found: list[tuple[str, dict[str, object]]]) -> int:
    pixels = 0
    for path, rle in found:
        image = Image.open(path).convert("RGB")
        pixels += resized(image, SAM, SAM).width
        columns, rows = 3, 2  # the grid for these images
        whole = resized(image, columns * TILE, rows * TILE)
        places = [(c * TILE, r * TILE) for r in range(rows) for c in range(columns)]
        cut = [whole.crop((x, y, x + TILE, y + TILE)) for x, y in places]
        cut.append(resized(image, TILE, TILE))
        pixels += len(cut) + int(coco.decode(rle)[0, 0])
    return pixels


def parts(root: Path) -> dict[str, float]:
    """CPU seconds of each part of all samples."""
    found, seconds = read_index(root / "index"), dict.fromkeys(("open and decode", "1024 px", "tiles", "mask", "normalise"), 0.0)
    for number in range(len(found)):
        record = found.record(number)
        times = [time.process_time()]
        image = record_image(root, record)
        times.append(time.process_time())
        square = sam_image(image, SAM)
        times.append(time.process_time())
        cut = tiles(image, TILE, 1, TILES, True)
        times.append(time.process_time())
        region_mask(record, record.regions[0])
        times.append(time.process_time())
        normalise(cut), normalise([square])
        times.append(time.process_time())
        for name, start, end in zip(seconds, times, times[1:], strict=False):
            seconds[name] += end - start
    return seconds


def need() -> float:
    """Samples a second that an H100 takes."""
    values = RELEASED["ByteDance/Sa2VA-4B"]
    model = memory.empty_model(ModelConfig.from_dict(values)).requires_grad_(False)
    grid = model.config.family.grid(HEIGHT, WIDTH)
    vision = sum(p.numel() for p in model.vlm.vision.parameters()) * grid.tiles * ((TILE // 14) ** 2 + 1)
    return 0.4 * PEAK / (flop(model, grid.tokens + 5 * TURN, checkpointing=False) + 2 * vision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="fewer images and turns; below 50 s on two cores")
    images, turns = {"full": (60, 6), "quick": (12, 4), "smoke": (1, 1)}[parser.parse_args().scale]
    with TemporaryDirectory() as folder:
        found = publish(Path(folder), images)
        assert ours(Path(folder)) == bare(found)  # the same work
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        each: list[dict[str, float]] = []
        for _ in range(turns):
            for name, work in (("bare", lambda: bare(found)), ("ours", lambda: ours(Path(folder)))):
                start = time.process_time()
                work()
                seconds[name].append(time.process_time() - start)
            each.append(parts(Path(folder)))
    for name, times in seconds.items():
        print(f"{name:5} {1000 * min(times) / images:7.1f} ms per sample")
    best = {name: min(one[name] for one in each) / images for name in each[0]}
    for name, value in best.items():
        print(f"{name:16} {1000 * value:7.1f} ms per sample")
    rate, wanted = 1 / sum(best.values()), need()
    over = min(seconds["bare"]) / min(seconds["ours"])
    print(json.dumps({"over_bare": over, "images_per_s": rate, "need_per_s": wanted, "cores": wanted / rate}))


if __name__ == "__main__":
    main()
