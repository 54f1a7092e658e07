"""Damaged inputs by the thousand, over readers, commands and model folders: `python -m tests.bench.damage [--quick | --smoke]`.

damaged     inputs that were tried: bytes cut, doubled, zeroed or changed, and values of JSON, CSV, YAML put in the place of others
kept        those that gave the undamaged content
said        those that gave another content, which is what the damaged file says when it is read by other means
refused     those that were refused, or of which parts were, each by an error or a skipped record that names the file or the record
tracebacks  those that ended in an error that no user should see
unnamed     those whose refusal names neither file nor record, or that lost a part without a word
changed     those that gave a content which neither the undamaged nor the damaged file says

The last three have to be 0. What a file says is found by the json, csv, pickle and YAML of others, and masks by pycocotools; files with
checksums (PNG, npz, pth) can say nothing new; JPEGs and videos have none, and what they say is their size. `--seed` gives other
damage, `--only` the inputs whose name has this in it.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import resource
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco

from ans import cli, config
from ans.checkpoints.base import shard
from ans.data import masks
from ans.data.images import SEPARATOR, frame, open_image
from ans.data.matching import record_image, region_mask
from ans.data.records import ImageRecord, Skipped
from ans.data.sources import own, reason_seg, refcoco
from ans.data.sources.common import clean, read
from ans.errors import run as as_command
from ans.formats import shards
from ans.formats.pth import read_pth
from ans.toy import world
from tests.bench import add_scales
from tests.data.damage import READ, SIZE, Reader, damage

REPOSITORY = Path(__file__).parents[2]
TRIALS = {"full": 100_000, "quick": 10_000, "smoke": 2_000}
SLOW = 10
"""Inputs that take long are tried once in so many rounds."""

MEMORY = 12 * 2**30
"""Bytes of addresses: an input that asks for more ends in a MemoryError, which counts as a traceback."""

Item = tuple[frozenset[Any], frozenset[str]]
"""What is said of one object: atoms (texts and numbers), and digests of its masks."""


@dataclass
class Content:
    """What an input gave: its items; and what was refused of it, as keys and reasons."""

    items: Counter[Item] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Input:
    """A file that is damaged, and what reads it. `sizes`: (height, width) at which outlines may be drawn."""

    name: str
    path: Path
    read: Callable[[], Content]
    sizes: tuple[tuple[int, int], ...] = ()
    end: int | None = None
    slow: bool = False


# ------------------------------------------------------------------------------------------------------------ what was read


def digest(mask: np.ndarray) -> str:
    return hashlib.sha256(repr(mask.shape).encode() + np.ascontiguousarray(mask > 0).tobytes()).hexdigest()


class Records:
    """What a reader gives, its images opened as training does."""

    def __init__(self, root: Path, reader: Reader, damaged: str) -> None:
        self.root, self.reader, self.damaged = root, reader, damaged
        self.sound: set[tuple[str, int, int]] = set()

    def __call__(self) -> Content:
        found = Content()
        for item in self.reader(self.root):
            if isinstance(item, Skipped):
                found.refused.append(f"{item.key}: {item.reason}")
            else:
                self._add(item, found)
        return found

    def _add(self, record: ImageRecord, found: Content) -> None:
        pixels = ""
        for second in (False, True) if record.second else (False,):
            path = record.second if second else record.path
            known = (path, record.width, record.height)
            if known in self.sound and self.damaged not in path:
                continue
            try:
                image = record_image(self.root, record, second)
            except (ValueError, FileNotFoundError) as error:
                found.refused.append(str(error))
                return
            self.sound.add(known)
            if ".png" in path or ".npz" in path:
                pixels += hashlib.sha256(image.tobytes()).hexdigest() if self.damaged in path else ""
        where = [
            path.partition(SEPARATOR)[0] if ":" in path.partition(SEPARATOR)[2] else path for path in (record.path, record.second)
        ]
        for region in record.regions:
            drawn = {digest(region_mask(record, region))} if region.area else set()
            for counts in (region.second_counts, region.ignore_counts):
                drawn |= {digest(masks.decode(counts, record.height, record.width))} if counts else set()
            texts = [one.sent for one in region.expressions]
            atoms = {*where, region.split, region.category, *texts, pixels} - {""}
            found.items[frozenset(atoms), frozenset(drawn)] += 1


def values(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(found, dict):
        for key, value in found.items():
            yield from values(value, f"{path}.{key}")
    elif isinstance(found, list | tuple):
        for number, value in enumerate(found):
            yield from values(value, f"{path}.{number}")
    else:
        yield path, repr(found)


def flat(found: Any) -> Content:
    """Every value at its place is an item."""
    return Content(Counter((frozenset([pair]), frozenset()) for pair in values(found)))


# --------------------------------------------------------------------------------------------------------- what a file says


NO_JPEG = (StopIteration, IndexError)


class Said:
    """What is in a file, as others read it: `document`, None where nothing is sure; its texts; and masks of its outlines and runs."""

    def __init__(self, path: Path, data: bytes, sizes: tuple[tuple[int, int], ...]) -> None:
        self.sizes = sizes
        self.atoms: set[Any] = set()
        self.masks: set[str] = set()
        try:
            self.document = self._parse(path, data)
        except (ValueError, RecursionError, OverflowError, yaml.YAMLError, csv.Error, ElementTree.ParseError, *NO_JPEG):
            self.document = None
        if self.document is not None:
            self._walk(self.document)
            self.atoms |= set(values(self.document))
            for place, text in values(self.document) if path.suffix == ".yaml" else ():  # 0.e1 is a number to YAML 1.2 alone
                with contextlib.suppress(ValueError):
                    self.atoms.add((place, repr(float(text.strip("'")))))

    def _parse(self, path: Path, data: bytes) -> Any:
        match path.suffix:
            case ".json":
                try:
                    text = data.decode("utf-8")
                except UnicodeDecodeError:
                    text = data.decode("cp1252")
                return json.loads(text)
            case ".jsonl":
                return [_json_or_none(line) for line in data.split(b"\n")]
            case ".csv":
                return list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))
            case ".p":
                return refcoco.load_refs(path)
            case ".yaml":
                return yaml.safe_load(data)
            case ".xml":
                return [(one.tag, one.text) for one in ElementTree.fromstring(data).iter()]
            case ".jpg":
                return self._jpeg(path, data)
            case ".mp4":
                entry = data.index(b"avc1", data.index(b"moov")) + 28
                return [[int.from_bytes(data[at : at + 2]) for at in (entry, entry + 2)]] * 2
            case ".safetensors":
                return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return None

    def _jpeg(self, path: Path, data: bytes) -> Any:
        """Its size by its frame's header, and the outlines beside it, which are drawn at that size where they state none."""
        start = next(
            place for place in range(len(data)) if data[place : place + 1] == b"\xff" and data[place + 1] in (0xC0, 0xC2)
        )
        height, width = (int.from_bytes(data[start + at : start + at + 2]) for at in (5, 7))
        self.sizes = (*self.sizes, (height, width))
        beside = path.with_suffix(".json")
        return [height, width, json.loads(beside.read_bytes()) if beside.is_file() else None]

    def _walk(self, value: Any) -> None:
        if isinstance(value, str):
            self.atoms.add(value)
            self.atoms.update(value.replace("\\", "/").split("/"))
            with contextlib.suppress(ValueError):
                self.atoms.add(clean(value))
        elif isinstance(value, dict):
            self._draw(value)
            for key, one in value.items():
                self._walk(key)
                self._walk(one)
        elif isinstance(value, list | tuple):
            for one in value:
                self._walk(one)

    def _draw(self, record: dict[Any, Any]) -> None:
        for height, width in self.sizes:
            for one in record.values() if "counts" not in record else [record]:
                with contextlib.suppress(Exception):  # whatever is no mask to others
                    self.masks.add(digest(_drawn(one, height, width)))
            if isinstance(shapes := record.get("shapes"), list):
                with contextlib.suppress(ValueError):
                    drawn = reason_seg.draw(shapes, height, width)
                    self.masks |= {digest(drawn == value) for value in (reason_seg.TARGET, reason_seg.IGNORED)}
                for shape in shapes:
                    with contextlib.suppress(ValueError):
                        self.masks.add(digest(reason_seg.draw_shape(shape, height, width)))


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _drawn(segmentation: Any, height: int, width: int) -> np.ndarray:
    """By pycocotools, or run by run; of runs, only those that fill the image."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        runs = list(map(int, counts)) if isinstance(counts, list) else _runs(counts)
        if min(runs) < 0 or sum(runs) != height * width:
            raise ValueError("not filled")
        flat_mask = np.repeat(np.arange(len(runs)) % 2, runs)
        return flat_mask.reshape(width, height).T
    outlines = [[float(value) for value in line] for line in segmentation]
    outlines = [line for line in outlines if len(line) >= 6 and len({*zip(line[::2], line[1::2], strict=False)}) >= 3]
    if not outlines or not all(abs(value) <= 10**6 for line in outlines for value in line):  # a NaN is not, either
        raise ValueError("far outside")
    return coco.decode(coco.merge(coco.frPyObjects(outlines, height, width)))


def _runs(counts: str) -> list[int]:
    """COCO's coding, number by number."""
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        code = ord(character) - 48
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            number -= (1 << shift) if code & 16 else 0
            runs.append(number + runs[-2] if len(runs) > 2 else number)
            number = shift = 0
    return runs


# ----------------------------------------------------------------------------------------------------------------- damage

HOSTILE = (
    None, True, False, -1, 0, 1.5, 2**31, 2**62, 2**63, 10**30, 1e38, float("inf"), float("nan"), "", " ", "\0", "a\nb", "<b>&\"'", "[SEG]",
    "../x", "/etc/passwd", "a" * 9000, "\ud800", "1", [], {}, [[]], [None], {"id": 1}, [[0, 0, 1, 1]], {"size": [1, 1], "counts": "0"},
)  # fmt: skip


def hostile(data: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """A value of a JSON replaced by another of any kind, left out, or doubled; of other files the bytes damaged."""
    lines = data.split(b"\n") if suffix == ".jsonl" else [data]
    place = int(rng.integers(len(lines)))
    try:
        document = json.loads(lines[place])
    except ValueError:
        return damage(data, rng)
    spots = list(_spots(document))
    if not spots:
        return damage(data, rng)
    holder, key = spots[rng.integers(len(spots))]
    match rng.integers(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(int(key), holder[key])
        case 2:  # the same in other words
            return b"\n".join(
                [*lines[:place], json.dumps(document, indent=None if suffix == ".jsonl" else 3).encode(), *lines[place + 1 :]]
            )
        case 3 if isinstance(holder, dict):  # a duplicate key
            text = json.dumps(document, allow_nan=True)
            first = json.dumps(key) + ": "
            lines[place] = text.replace(first, f"{first}{json.dumps(HOSTILE[rng.integers(len(HOSTILE))])}, {first}", 1).encode()
            return b"\n".join(lines)
        case _:
            holder[key] = HOSTILE[rng.integers(len(HOSTILE))]
    lines[place] = json.dumps(document).encode()
    return b"\n".join(lines)


def _spots(found: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ():
        yield found, key
        yield from _spots(value)


# ------------------------------------------------------------------------------------------------------------------- judge


class Campaign:
    """Counts of what became of each input; what has to be 0 is printed with the trial that shows it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts = Counter(dict.fromkeys(("damaged", "kept", "said", "refused", "tracebacks", "unnamed", "changed"), 0))

    def try_one(self, one: Input, trial: int, whole: bytes, before: Content) -> None:
        rng = np.random.default_rng([self.seed, trial])
        head, tail = (whole, b"") if one.end is None else (whole[: one.end], whole[one.end :])
        damaged = (damage(head, rng) if trial % 2 else hostile(head, one.path.suffix, rng)) + tail
        one.path.write_bytes(damaged)
        self.counts["damaged"] += 1
        try:
            after, error = one.read(), None
        except (ValueError, OSError) as wrong:  # a setting is named by its path
            after, error = Content(), str(wrong) + one.path.name * isinstance(wrong, config.ConfigError)
        except (Exception, SystemExit) as wrong:  # whatever it is, it is what is counted here
            self._wrong("tracebacks", one, trial, f"{type(wrong).__name__}: {wrong}")
            return
        if error is not None:
            named = one.path.name in error
            self.counts["refused"] += named
            if not named:
                self._wrong("unnamed", one, trial, error)
            return
        self._compare(one, trial, before, after, whole, damaged)

    def _compare(self, one: Input, trial: int, before: Content, after: Content, whole: bytes, damaged: bytes) -> None:
        new, lost = after.items - before.items, before.items - after.items
        if not new and not lost:
            self.counts["kept"] += 1
            return
        said = Said(one.path, damaged, one.sizes)
        was = Said(one.path, whole, one.sizes) if one.path.suffix != ".p" else None
        same = was is not None and said.document is not None and repr(said.document) == repr(was.document)
        atoms = {atom for item in before.items for atom in item[0]} | said.atoms
        drawn = {mask for item in before.items for mask in item[1]} | said.masks
        for item in new:
            if said.document is None or same or not _known(item[0], atoms) or not item[1] <= drawn:
                self._wrong("changed", one, trial, f"{set(item[0]) - atoms} {len(item[1] - drawn)} masks")
                return
        refused = Counter(after.refused) - Counter(before.refused)
        if new:
            self.counts["said"] += 1
        elif refused:
            self.counts["refused"] += 1
        elif said.document is not None and not same:
            self.counts["said"] += 1  # of less
        else:
            self._wrong("unnamed", one, trial, f"lost {len(lost)} without a word")

    def _wrong(self, kind: str, one: Input, trial: int, text: str) -> None:
        self.counts[kind] += 1
        print(f"{kind}: {one.name}, trial {trial}: {text[:300]}")


def _known(atoms: frozenset[Any], known: set[Any]) -> bool:
    """A path is known by its last part: that is what listings have of it."""
    return all(atom in known or (isinstance(atom, str) and atom.rpartition("/")[2] in known) for atom in atoms)


# ------------------------------------------------------------------------------------------------------------------ inputs


def inputs(folder: Path) -> list[Input]:
    """Everything that is damaged, below `folder`."""
    return [
        *_of_readers(folder / "world"),
        *_of_imports(folder / "imports"),
        *_of_models(folder / "models"),
        *_of_commands(folder),
    ]


def _of_readers(root: Path) -> Iterator[Input]:
    world.write_world(root, SIZE)
    patterns = READ | {
        "own/images/*": READ["own/masks/*.png"],
        "reason_seg/ReasonSeg/val/*.jpg": READ["reason_seg/ReasonSeg/train/*.json"],
        "sav/videos/**/*.jpg": READ["sav/videos/**/*_auto.json"],
    }
    for pattern, reader in patterns.items():
        path = sorted(root.glob(pattern))[0]
        read_all = Records(root, reader, path.name)
        sizes = tuple({(record.height, record.width) for record in reader(root) if isinstance(record, ImageRecord)})
        yield Input(pattern, path, read_all, sizes)
    video = root / "a.mp4"
    shutil.copyfile(REPOSITORY / "tests/cases/videos/vfr_phone.mp4", video)
    yield Input("video", video, lambda: flat([open_image(root, frame("a.mp4", number)).size for number in (0, 8)]), slow=True)


MASK = np.zeros((10, 20), np.uint8)
MASK[2:5, 3:9] = 255


def _of_imports(root: Path) -> Iterator[Input]:
    for kind in ("coco", "labelme", "voc", "photos"):
        place = root / kind
        images = place / {"coco": "images", "voc": "JPEGImages"}.get(kind, ".")
        for name in ("a.png", "b.png"):
            images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([MASK, MASK, 255 - MASK], 2)).save(images / name)
        outline = [3, 2, 9, 2, 9, 5, 3, 5]
        more: tuple[str, ...] = ()
        source = place
        match kind:
            case "coco":
                listing = {
                    "images": [{"id": n, "file_name": f"{name}.png", "width": 20, "height": 10} for n, name in enumerate("ab")],
                    "annotations": [
                        {"id": n, "image_id": n, "category_id": 1, "segmentation": [outline], "area": 18, "bbox": [3, 2, 6, 3]}
                        for n in range(2)
                    ],
                    "categories": [{"id": 1, "name": "cup"}],
                }
                source = place / "coco.json"
                source.write_text(json.dumps(listing))
                damaged = [source, images / "a.png"]
            case "labelme":
                shape = {"label": "cup", "points": [[3, 2], [8, 2], [8, 4], [3, 4]], "shape_type": "polygon"}
                for name in "ab":
                    listing = {"shapes": [shape], "imagePath": f"{name}.png", "imageWidth": 20, "imageHeight": 10}
                    (place / f"{name}.json").write_text(json.dumps(listing))
                damaged = [place / "a.json"]
            case "voc":
                for name in ("SegmentationObject", "Annotations"):
                    (place / name).mkdir()
                for name in "ab":
                    Image.fromarray(MASK // 255).save(place / f"SegmentationObject/{name}.png")
                    text = "<annotation><object><name>cup</name></object></annotation>"
                    (place / f"Annotations/{name}.xml").write_text(text)
                damaged = [place / "SegmentationObject/a.png", place / "Annotations/a.xml"]
            case _:
                (place / "masks").mkdir()
                for name in ("a_cup", "b_cup"):
                    Image.fromarray(MASK).save(place / f"masks/{name}.png")
                more = ("--masks", str(place / "masks"))
                damaged = [place / "masks/a_cup.png"]
        for path in damaged:
            yield Input(f"import {kind} {path.name}", path, Import(source, root / "out", more, path.name), ((10, 20),))


class Import:
    """`python -m ans import`, and what own data says of what it wrote."""

    def __init__(self, source: Path, out: Path, more: tuple[str, ...], damaged: str) -> None:
        self.arguments = ["import", str(source), str(out), *more, "--category-as-text"]
        self.out = out
        self.records = Records(out.parent, lambda root: read(own, root, out.name, "own"), damaged)

    def __call__(self) -> Content:
        shutil.rmtree(self.out, ignore_errors=True)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            cli.main(self.arguments)
        found = self.records()
        found.refused += [line for line in said.getvalue().splitlines() if line.startswith(("left out", "note"))]
        return found


def _of_commands(folder: Path) -> Iterator[Input]:
    params = folder / "params.yaml"
    shutil.copyfile(REPOSITORY / "params.yaml", params)
    yield Input("config", params, lambda: flat(config.load(params)._raw), end=6000)
    place = folder / "world/own"
    for name in ("expressions.jsonl", "annotations.json"):
        yield Input(f"validate {name}", place / name, Command(["validate", str(place)], name))


class Command:
    """A command's lines, as a user sees them; an error is one line that names the file."""

    def __init__(self, arguments: list[str], named: str) -> None:
        self.arguments, self.named = arguments, named

    def __call__(self) -> Content:
        out, wrong = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(wrong):
            try:
                as_command(cli.main, self.arguments)
            except SystemExit as ended:
                if ended.code != 1:
                    raise
                if self.named not in out.getvalue() + wrong.getvalue() and f"{own.EXPRESSIONS}:" not in out.getvalue():
                    raise ValueError(f"status 1: {out.getvalue()}{wrong.getvalue()}") from None
        return Content()


def _of_models(folder: Path) -> Iterator[Input]:
    import torch

    from ans.model.config import ModelConfig
    from ans.model.segmenter import Segmenter
    from ans.model.tokens import load_tokenizer

    base = folder / "base"
    shard(REPOSITORY / "weights/tiny", base)
    language = ModelConfig.from_folder(base).language
    weights = max(base.glob("*.safetensors"), key=lambda path: -path.stat().st_size)
    head = 8 + int.from_bytes(weights.read_bytes()[:8], "little")

    def tensors() -> Content:
        entries = shards.entries(base)
        items = ((name, one.dtype, *one.shape, hashlib.sha256(one.read()).hexdigest()) for name, one in entries.items())
        return Content(Counter((frozenset([item]), frozenset()) for item in items))

    def words() -> Content:
        load_tokenizer(base, language).encode("the red cup <b> [SEG]", add_special_tokens=False)
        return Content()

    def loaded() -> Content:
        Segmenter.from_pretrained(base, "cpu")
        return Content()

    yield Input("config.json", base / "config.json", lambda: flat(dict(ModelConfig.from_folder(base).values)))
    yield Input("config.json, loaded", base / "config.json", loaded, slow=True)
    yield Input("shards' index", base / shards.INDEX, tensors)
    yield Input("safetensors header", weights, tensors, end=head)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        yield Input(name, base / name, words, slow=True)
    pth = folder / "a.pth"
    torch.save({"state_dict": {"text_hidden_fcs.0.bias": torch.arange(40.0)}, "meta": {"x": 1}}, pth)

    def state() -> Content:
        read_state = read_pth(pth).state
        items = ((name, tuple(of.shape), hashlib.sha256(of.numpy().tobytes()).hexdigest()) for name, of in read_state.items())
        return Content(Counter((frozenset([item]), frozenset()) for item in items))

    yield Input("pth", pth, state)


def run(folder: Path, trials: int, seed: int = 0, only: str = "") -> dict[str, int]:
    """Damage inputs below `folder` in turn, each in its own way."""
    found = [one for one in inputs(folder) if only in one.name]
    wholes = {one.name: one.path.read_bytes() for one in found}
    befores = {one.name: one.read() for one in found}
    campaign = Campaign(seed)
    rounds = 0
    with warnings.catch_warnings(action="ignore"):
        while campaign.counts["damaged"] < trials:
            for one in found:
                if campaign.counts["damaged"] < trials and (not one.slow or rounds % SLOW == 0):
                    trial = rounds * len(found) + found.index(one)
                    try:
                        campaign.try_one(one, trial, wholes[one.name], befores[one.name])
                    finally:
                        one.path.write_bytes(wholes[one.name])
            rounds += 1
    return dict(campaign.counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="10,000 damaged inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="NAME")
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with TemporaryDirectory(dir=os.environ.get("ANS_BENCH")) as folder:
        os.environ["ANS_RUNS"] = str(Path(folder) / "runs")
        results = run(Path(folder), TRIALS[chosen.scale], chosen.seed, chosen.only)
    for name, value in results.items():
        print(f"{name:12} {value:8}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
