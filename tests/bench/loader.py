"""Speed of what a training sample costs per core: `python -m tests.bench.loader [--quick]`.

over_bare   samples per second of the loader (a record from its index, image opened below the root, SAM's resize, tiles, mask)
            over bare Pillow and pycocotools on the same files (CPU time in one process, the best of several turns)

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
from ans.model.preprocess import sam_image, tiles
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


def bare(found: list[tuple[str, dict[str, object]]]) -> int:
    pixels = 0
    for path, rle in found:
        image = Image.open(path).convert("RGB")
        pixels += image.resize((SAM, SAM), Image.Resampling.BICUBIC).width
        columns, rows = 3, 2  # the grid for these images
        resized = image.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
        places = [(c * TILE, r * TILE) for r in range(rows) for c in range(columns)]
        cut = [resized.crop((x, y, x + TILE, y + TILE)) for x, y in places]
        cut.append(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
        pixels += len(cut) + int(coco.decode(rle)[0, 0])
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="fewer images and turns; below 50 s on two cores")
    images, turns = {"full": (60, 6), "quick": (12, 4), "smoke": (1, 1)}[parser.parse_args().scale]
    with TemporaryDirectory() as folder:
        found = publish(Path(folder), images)
        assert ours(Path(folder)) == bare(found)  # the same work
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(turns):
            for name, work in (("bare", lambda: bare(found)), ("ours", lambda: ours(Path(folder)))):
                start = time.process_time()
                work()
                seconds[name].append(time.process_time() - start)
    for name, times in seconds.items():
        print(f"{name:5} {1000 * min(times) / images:7.1f} ms per sample")
    print(json.dumps({"over_bare": min(seconds["bare"]) / min(seconds["ours"])}))


if __name__ == "__main__":
    main()
