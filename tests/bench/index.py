"""Speed and memory of indexing: `python -m tests.bench.index [--quick]`.

sa1b_over_bare      images per second of `subset_sa1b` on one core, over a loop that parses the same JSONs with orjson and
                    writes the same columns with pyarrow (CPU time, the best of several turns)
sa1b_over_tuned     the same, over that loop with every column gathered by hand
two_core_speedup    wall time of one process over that of two; means nothing while something else computes
peak_over_tenth     peak of anonymous memory over 10,000 images to that over 1,000, each beyond what the process had before
listing_slope       bytes of anonymous memory that a further image takes while SA-1B, lying flat, is listed: from 300,000 images (--quick:
                    150,000) to a million (450,000), whose names are invented: what the disk answers is a stream in any case
open_ms, sample_ms  an index of a million rows: to open it, and to read a random record
decode_over_bare    images per second of `validate --decode` on one core, over a loop that opens the same JPEGs (1024 x 768) with Pillow
damaged, unnamed    damaged files that were read, and those of which neither a reader's error nor a skipped record tells

JSONs are as SA-1B's: 1500 x 2250 pixels, a hundred masks. They lie below `ANS_BENCH` (default: a temporary folder).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco

from ans import config
from ans.data import arrow, index, parts, validate
from ans.data.records import Expression, ImageRecord, Region
from ans.data.subset_sa1b import subset_sa1b
from ans.workspace import Workspace
from tests.bench import add_scales
from tests.data import damage
from tests.indexes import write_records

PARAMS = Path(__file__).parents[2] / "params.yaml"
HEIGHT, WIDTH, MASKS = 1500, 2250, 100
DISTINCT = 20
"""JSONs that differ; the others are links to them."""

SCALES = {
    "full": (4000, 5, 10_000, 10_000, 1_000_000, (300_000, 1_000_000)),
    "quick": (1500, 4, 500, 10_000, 1_000_000, (150_000, 450_000)),
    "smoke": (100, 1, 40, 1_000, 10_000, (1_000, 2_000)),
}
"""Images and turns of the speed, damaged files, images for the memory, rows of the large index, images of the two listings."""


def annotation_file(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    annotations = []
    while len(annotations) < MASKS:
        corners, radius = 60, float(np.exp(rng.uniform(np.log(8), np.log(400))))
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radii = radius * (1 + 0.25 * rng.standard_normal(corners).cumsum() / np.sqrt(corners))
        x = np.clip(rng.uniform(0, WIDTH) + radii * np.cos(angles), 0, WIDTH - 1)
        y = np.clip(rng.uniform(0, HEIGHT) + radii * np.sin(angles), 0, HEIGHT - 1)
        (rle,) = coco.frPyObjects([np.stack([x, y], 1).ravel().tolist()], HEIGHT, WIDTH)
        if area := int(coco.area(rle)):
            annotations.append(
                {
                    "id": 527_000_000 + 1000 * seed + len(annotations), "area": area, "bbox": coco.toBbox(rle).tolist(),
                    "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode("ascii")},
                    "predicted_iou": float(rng.uniform(0.88, 1)), "stability_score": float(rng.uniform(0.92, 1)),
                    "crop_box": [0.0, 0.0, float(WIDTH), float(HEIGHT)], "point_coords": [[float(x[0]), float(y[0])]],
                }
            )  # fmt: skip
    image = {"image_id": seed, "width": WIDTH, "height": HEIGHT}  # no file_name: one content serves many images
    return json.dumps({"image": image, "annotations": annotations}).encode("ascii")


def publish(root: Path, images: int) -> None:
    """`images` of SA-1B in one folder; the images themselves are empty files, since indexing never opens them."""
    folder = root / "sa1b"
    folder.mkdir(parents=True)
    (root / "empty").touch()
    for seed in range(DISTINCT):
        (root / f"{seed}").write_bytes(annotation_file(seed))
    for number in range(images):
        os.link(root / f"{number % DISTINCT}", folder / f"sa_{number}.json")
        os.link(root / "empty", folder / f"sa_{number}.jpg")


def settings(root: Path, images: int) -> config.Config:
    return config.load(PARAMS).changed({"paths.root": str(root), "subset_sa1b.images": images})


def bare(root: Path, images: int, path: Path) -> None:
    """What any index has to do: open, parse, and write the columns that are kept."""
    names = sorted(f"sa_{number}" for number in range(images))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, arrow.RECORD) as writer:
        for start in range(0, images, arrow.ROWS_PER_BATCH):
            rows = []
            for name in names[start : start + arrow.ROWS_PER_BATCH]:
                content = orjson.loads((root / "sa1b" / f"{name}.json").read_bytes())
                image = content["image"]
                regions = [
                    {
                        "region_id": annotation["id"], "split": "", "category": "", "area": annotation["area"],
                        "bbox": annotation["bbox"], "counts": annotation["segmentation"]["counts"], "expressions": [],
                        "second_counts": "", "ignore_counts": "",
                    }
                    for annotation in content["annotations"]
                ]  # fmt: skip
                row = {"image_id": image["image_id"], "path": f"sa1b/{name}.jpg", "width": image["width"], "second": ""}
                rows.append(row | {"height": image["height"], "regions": regions})
            writer.write_batch(pa.RecordBatch.from_pylist(rows, arrow.RECORD))


def tuned(root: Path, images: int, path: Path) -> None:
    """The same file with every column gathered by hand, and nothing checked: the least that it can take."""
    names = sorted(f"sa_{number}" for number in range(images))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, arrow.RECORD) as writer:
        for start in range(0, images, arrow.ROWS_PER_BATCH):
            image_ids, paths, widths, heights, ends = [], [], [], [], [0]
            ids, areas, boxes, counts = [], [], [], []
            for name in names[start : start + arrow.ROWS_PER_BATCH]:
                content = orjson.loads((root / "sa1b" / f"{name}.json").read_bytes())
                image_ids.append(content["image"]["image_id"])
                widths.append(content["image"]["width"])
                heights.append(content["image"]["height"])
                paths.append(f"sa1b/{name}.jpg")
                for annotation in content["annotations"]:
                    ids.append(annotation["id"])
                    areas.append(annotation["area"])
                    boxes += annotation["bbox"]
                    counts.append(annotation["segmentation"]["counts"])
                ends.append(len(ids))
            nothing = pa.repeat("", len(ids))
            regions = pa.StructArray.from_arrays(
                [
                    pa.array(ids, pa.int64()),
                    nothing,
                    nothing,
                    pa.array(areas, pa.int64()),
                    pa.FixedSizeListArray.from_arrays(np.array(boxes, np.float64), 4),
                    pa.array(counts, pa.string()),
                    pa.ListArray.from_arrays(np.zeros(len(ids) + 1, np.int32), pa.array([], arrow.EXPRESSION)),
                    nothing,
                    nothing,
                ],
                fields=list(arrow.REGION),
            )
            columns = [
                pa.array(image_ids, pa.int64()),
                pa.array(paths, pa.string()),
                pa.array(widths, pa.int32()),
                pa.array(heights, pa.int32()),
                pa.ListArray.from_arrays(np.array(ends, np.int32), regions, type=arrow.RECORD.field("regions").type),
                pa.repeat("", len(paths)),
                pa.repeat("", len(paths)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=arrow.RECORD))


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(root: Path, images: int, turns: int) -> dict[str, float]:
    at = Workspace(root / "work")
    chosen = settings(root, images)
    index.build("sa1b", chosen, at, workers=1)
    seconds: dict[str, list[float]] = {"bare": [], "tuned": [], "ours": []}
    for _ in range(turns):  # in turn, so that what slows the machine down slows all
        for name, work in (("bare", bare), ("tuned", tuned)):
            seconds[name].append(cpu_seconds(lambda work=work: work(root, images, root / "bare.arrow")))
        seconds["ours"].append(cpu_seconds(lambda: subset_sa1b(chosen, at, workers=1)))
    best = {name: min(times) for name, times in seconds.items()}
    one, two = (min(wall_seconds(lambda n=n: subset_sa1b(chosen, at, workers=n)) for _ in range(turns)) for n in (1, 2))
    ratios = {f"sa1b_over_{name}": best[name] / best["ours"] for name in ("bare", "tuned")}
    return {**ratios, "two_core_speedup": one / two}


def anonymous() -> int:
    """Anonymous memory of this process, in kB: what is mapped from files is not counted."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def peak(root: Path, images: int) -> int:
    """In a process of its own: kB of anonymous memory at most while `images` are indexed, beyond what was there before."""
    chosen = settings(root, images)
    at = Workspace(root / "memory")
    index.build("sa1b", chosen, at, workers=1)
    return highest(lambda: subset_sa1b(chosen, at, workers=1))


def listing(root: Path, images: int) -> int:
    """In a process of its own: the same while a folder of so many images and JSONs, in a mixed order, is listed."""
    flat, scan = root / "sa1b", os.scandir
    flat.mkdir(parents=True, exist_ok=True)

    def invented(folder: Any) -> Any:
        if str(folder) != str(flat):
            return scan(folder)
        numbers = (7919 * n % (2 * images) for n in range(2 * images))
        return (SimpleNamespace(name=f"sa_{n // 2}{('.jpg', '.json')[n % 2]}") for n in numbers)

    os.scandir = invented
    chosen, at = settings(root, images), Workspace(root / "memory")
    return highest(lambda: index.build("sa1b", chosen, at, workers=1))


def highest(work: Callable[[], object]) -> int:
    """kB of anonymous memory at most during the work, beyond what was there before."""
    before, most, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return most - before


def apart(what: str, root: Path, images: int) -> int:
    command = [sys.executable, "-m", "tests.bench.index", f"--{what}", str(root), str(images)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def access(folder: Path, images: int) -> dict[str, float]:
    """An index of so many images of three masks each."""
    region = Region(7, "train", "shape", 100, (1.0, 2.0, 3.0, 4.0), "P`]<" * 50, (Expression(1, "a star", "A STAR"),))
    records = [ImageRecord(i, f"images/{i:012d}.jpg", 640, 480, (region,) * 3) for i in range(arrow.ROWS_PER_BATCH)]
    (batch,) = arrow.to_batches(arrow.RECORD, records)
    path = folder / "million"
    metadata = {"source": "x", "reader": "x", "folder": "x", "root_listing": "x"}
    arrow.write_file(path, arrow.RECORD, (batch for _ in range(images // arrow.ROWS_PER_BATCH)), metadata)
    opened = [wall_seconds(lambda: arrow.read_index(path)) for _ in range(7)]
    found = arrow.read_index(path)
    rows = np.random.default_rng(0).integers(len(found), size=2000)
    sampled = [wall_seconds(lambda i=i: found.record(int(i))) for i in rows]
    path.unlink()
    return {"open_ms": 1000 * statistics.median(opened), "sample_ms": 1000 * statistics.mean(sampled)}


def decoding(root: Path, images: int, turns: int) -> dict[str, float]:
    """Of each record the image is opened as training does; of the bare loop, read and converted to RGB."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(DISTINCT):
        noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        noise.resize((1024, 768), Image.Resampling.BICUBIC).save(root / f"{number}.jpg", quality=90)
    paths = [f"{number % DISTINCT}.jpg" for number in range(images)]
    metadata = {"source": "x", "reader": "x", "folder": "x", "root_listing": "x"}
    write_records(root / "x.arrow", (ImageRecord(i, path, 1024, 768) for i, path in enumerate(paths)), metadata)

    def bare() -> None:
        for path in paths:
            with open(root / path, "rb") as file, Image.open(file) as image:
                image.convert("RGB")

    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(turns):
        seconds["bare"].append(cpu_seconds(bare))
        seconds["ours"].append(cpu_seconds(lambda: validate.decode(root / "x.arrow", root, root / "runs", workers=1)))
    return {"decode_over_bare": min(seconds["bare"]) / min(seconds["ours"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="fewer images, turns and damaged files; below 50 s on two cores")
    for work in (peak, listing):
        parser.add_argument(f"--{work.__name__}", nargs=2, metavar=("ROOT", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for work, given in ((peak, arguments.peak), (listing, arguments.listing)):
        if given:
            print(work(Path(given[0]), int(given[1])))
            return
    images, turns, trials, many, rows, (few, most) = SCALES[arguments.scale]
    with TemporaryDirectory(dir=os.environ.get("ANS_BENCH")) as folder:
        os.environ["ANS_RUNS"] = str(Path(folder) / "runs")
        publish(Path(folder) / "speed", images)
        results = speed(Path(folder) / "speed", images, turns)
        root = Path(folder) / "memory"
        publish(root, many)
        results["peak_over_tenth"] = apart("peak", root, many) / apart("peak", root, many // 10)
        kilobytes = [apart("listing", Path(folder) / f"flat{images}", images) for images in (few, most)]
        results["listing_slope"] = 1024 * (kilobytes[1] - kilobytes[0]) / (most - few)
        results |= access(root, rows)
        results |= decoding(Path(folder) / "decode", images // 5, turns)
        results |= damage.trial_run(Path(folder) / "damage", trials)
    print(f"{parts.processes()} cores, {images} images of {MASKS} masks")
    for name, value in results.items():
        print(f"{name:20} {value:10.3f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
