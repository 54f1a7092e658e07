"""The report on a small tree of made-up results, whose numbers are computed here by hand."""

import csv
import dataclasses
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco

from ans.config import Config
from ans.evaluation.metrics import box_giou, intersection_union, iou, summarise
from ans.files import write_json
from ans.report.build import build
from ans.report.failures import find_reasons
from ans.report.gallery import CHANGED, candidates, choose, order
from ans.report.headline import headline
from ans.report.results import ResultsError, read_results
from ans.report.tables import MEAN, PICTURES, Scores, markdown, score
from ans.report.training import conflict_panels, panels, read_training
from ans.shown import EXAMPLE_SIDE
from ans.tasks import load as load_task
from ans.training.manifest import panels as panels_of
from ans.workspace import Workspace

VARIANTS = ("base", "full", "lora", "proj")
SHRINK = {"base": 5, "full": 1, "lora": 2, "proj": 5}
"""Pixels by which a variant's masks are smaller than the truth on each side: `proj` equals the base."""
SPLITS = ("refcoco_val", "refcocog_test")
CAPTIONS = ("refcoco_val_captions",)
SIDE = 48
STEPS = 60
TEXTS = {"loop1": ("teacher", "student"), "loop2": ("data", "model")}
CURVES = ("loss", "lr", "grad_norm", "loop1_kept_mass")
CURVES += tuple(f"{source}_{part}" for source in ("ref", "loop1", "loop2") for part in ("mask", "dice", "train_iou"))
CURVES += tuple(f"{name}_{group}" for name in ("norm1", "norm2", "cosine", "along") for group in ("all", "lora", "fcs"))
HOSTILE = 'the <script>alert(1)</script> "striped" square that lies at the lower left & beyond'


def make_config(tree: Path, variants: tuple[str, ...] = VARIANTS, splits: tuple[str, ...] = SPLITS) -> Config:
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    values["paths"]["root"] = str(tree / "root")
    values["variants"] = {name: values["variants"][name] for name in variants}
    values["evaluate"] |= {"splits": list(splits), "captions": ["refcoco_val"]}
    values["report"] = {"seed": 0, "bootstrap": 300, "gallery": 3, "examples": 12}
    return Config(values)


def rle(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def scene(split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A (SIDE, SIDE, 3) image with one square, and the square's mask."""
    generator = np.random.default_rng([SPLITS.index(split), number])
    side, (top, left) = int(generator.integers(16, 28)), generator.integers(0, SIDE - 28, 2)
    truth = np.zeros((SIDE, SIDE), bool)
    truth[top : top + side, left : left + side] = True
    image = np.where(truth[..., None], generator.integers(0, 256, 3), generator.integers(0, 256, 3))
    return image.astype(np.uint8), truth


def answer(truth: np.ndarray, shrink: int) -> np.ndarray:
    rows, columns = np.nonzero(truth)
    mask = np.zeros_like(truth)
    mask[rows.min() + shrink : rows.max() + 1 - shrink, columns.min() + shrink : columns.max() + 1 - shrink] = True
    return mask


def make_tree(tmp_path: Path) -> Path:
    """reports/, data/ and root/ as evaluation, training and the world leave them; the base says no [SEG] on image 0."""
    for split in SPLITS:
        for variant in VARIANTS:
            rows = []
            for number in range(8):
                image, truth = scene(split, number)
                path = f"images/{split}_{number}.png"
                if variant == "base":
                    (tmp_path / "root" / "images").mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image).save(tmp_path / "root" / path)
                has_seg = not (variant == "base" and number == 0)
                mask = answer(truth, SHRINK[variant]) if has_seg else np.zeros_like(truth)
                intersection, union = intersection_union(mask, truth)
                inside = int(answer(truth, SHRINK[variant]).sum())
                for sent in range(2):
                    rows.append(
                        {
                            "image_path": path,
                            "image_id": number,
                            "region_id": 10 * number,
                            "sent_id": 100 * number + sent,
                            "sent": ("the square", HOSTILE)[sent],
                            "iou": iou(intersection, union),
                            "intersection": intersection,
                            "union": union,
                            "forced_intersection": inside,
                            "forced_union": int(truth.sum()),
                            "has_seg": has_seg,
                            "no_target": False,
                            "said_nothing": not has_seg,
                            "box_giou": box_giou(mask, truth),
                            "counts": rle(mask),
                            "height": SIDE,
                            "width": SIDE,
                            "answer": "Sure, [SEG].",
                            "gt_counts": rle(truth),
                        }
                    )
            table = tmp_path / "data" / "eval" / variant / f"{split}.parquet"
            metrics = tmp_path / "reports" / "eval" / variant / f"{split}.json"
            for path in (table, metrics):
                path.parent.mkdir(parents=True, exist_ok=True)
            described = {
                "facts_right": 0.5,
                "all_right": 0.25,
                "wrong_object": 0.125,
                "cider": 1.25,
                "exact": 0.25,
                "cycle_ciou": 0.75,
                "cycle_miou": 0.125,
            }
            metrics.with_name(f"{split}_captions.json").write_text(json.dumps({**described, "n": 8, "images": 8}))
            pd.DataFrame(rows).sample(frac=1, random_state=1).to_parquet(table)  # order must not matter
            metrics.write_text(json.dumps({**summarise(rows), "images": 8, "protocol": {}}))
    for variant in VARIANTS:
        protocol = {
            "capped": False,
            "packages": {"torch": "2"},
            "precision": "float32",
            "device": "cpu",
            "prompt": "Where is {}?",
        }
        protocol |= {"max_new_tokens": 16, "code_sha256": "c0de", "weights_sha256": f"5ha of {variant}", "splits": {}}
        (tmp_path / "data" / "eval" / variant / "protocol.json").write_text(json.dumps(protocol))
        write_captions(tmp_path, variant)
    write_training(tmp_path)
    sources = tmp_path / "reports" / "data"
    sources.mkdir()
    for name in [*make_config(tmp_path).sources, "sa1b_subset"]:
        skipped = {"no <mask>": {"count": 3, "examples": ["a.png"]}} if name == "sav" else {}
        (sources / f"{name}.json").write_text(json.dumps({"source": name, "images": 1234, "skipped": skipped}))
    return tmp_path


def write_captions(tmp_path: Path, variant: str) -> None:
    rows = []
    for number in range(4):
        _, truth = scene("refcoco_val", number)
        about = {"image_path": f"images/refcoco_val_{number}.png", "region_id": number, "height": SIDE, "width": SIDE}
        about |= {"counts": rle(answer(truth, 2)), "gt_counts": rle(truth), "iou": 0.5, "references": ["a square", HOSTILE]}
        rows.append(about | {"caption": f"{variant} <says> so"})
    pd.DataFrame(rows).to_parquet(tmp_path / "data" / "eval" / variant / "refcoco_val_captions.parquet")


def write_training(tmp_path: Path) -> None:
    """As training leaves it with both loops on; loop 1 has its turn every second step, and loop 2 never reaches `fcs`."""
    plots, folder = Workspace(tmp_path).training / "plots", Workspace(tmp_path).checkpoint
    plots.mkdir(parents=True)
    folder.mkdir(parents=True)
    steps = np.arange(1, STEPS + 1)
    for name in CURVES:
        values = np.cos(steps / 9) if name.startswith(("cosine", "along")) else np.exp(-steps / 20) + 0.1
        values = 0 * values if name in ("norm2_fcs", "cosine_fcs", "along_fcs") else values
        rows = pd.DataFrame({"step": steps, name: values})
        rows[:: 2 if name.startswith("loop1") else 1].to_csv(plots / f"{name}.tsv", sep="\t", index=False)
    full = np.zeros((EXAMPLE_SIDE, EXAMPLE_SIDE), bool)
    full[:64] = True
    left = np.zeros_like(full)
    left[:64, :64] = True
    about = {"source": "sav", "image": "images/refcoco_val_0.png", "truth": rle(full), "mask": rle(left)}
    texts = {name: dict(zip(names, ("a red cat", "a <b> cat"), strict=True)) for name, names in TEXTS.items()}
    (folder / "examples.json").write_text(
        json.dumps(
            [about | {"task": t, "step": n, "texts": texts[t]} for t, n in (*2 * [("loop1", 1)], ("loop1", 31), ("loop2", 31))]
        )
    )
    tasks = {name: load_task(name) for name in ("referring", *TEXTS)}
    manifest = {
        "groups": {"lora (trained)": {"state": "trained", "tensors": 2, "parameters": 1000}},
        "processes": 1, "batch": 2, "accumulation": 3, "effective_batch": 6,
        "samples": {"sav": 100},
        "left_out_evaluated_images": 7,
        "train": {"surgery": "orthogonal", "beta": 0.5, "precision": "float32"}, "steps": STEPS,
        "preset": "tiny", "panels": panels_of(tasks),
        "tasks": {
            name: {"title": task.title, "role": task.role, "examples": task.examples, "settings": {"enabled": True}}
            for name, task in tasks.items()
        },
        "versions": {"torch": "2.0"},
        "base_sha256": "ba5e",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose report has been made; not to be changed."""
    path = make_tree(tmp_path_factory.mktemp("built"))
    run(path)
    return path


def run(tree: Path, variants: tuple[str, ...] = VARIANTS, splits: tuple[str, ...] = SPLITS) -> Path:
    build(make_config(tree, variants, splits), Workspace(tree))
    return tree / "reports"


@pytest.mark.second
def test_everything_is_written(built: Path) -> None:
    reports = built / "reports"
    with open(reports / "summary.csv", newline="") as file:
        rows = list(csv.reader(file))
    metrics = "variant split ciou miou p50 p60 p70 p80 p90 seg_rate ciou_forced n".split()
    assert rows[0] == [*metrics, *"ciou_low ciou_high difference difference_low difference_high".split()]
    assert [row[:2] for row in rows[1:]] == [[variant, split] for variant in VARIANTS for split in SPLITS]
    for row in rows[1:]:
        truths = [scene(row[1], number)[1] for number in range(8)]
        inside = [int(answer(truth, SHRINK[row[0]]).sum()) for truth in truths]
        if row[0] == "base":
            inside[0] = 0
        assert float(row[2]) == pytest.approx(sum(inside) / sum(int(truth.sum()) for truth in truths))
        assert (row[9], row[11]) == ("0.875" if row[0] == "base" else "1.0", "16")
        whole = sum(int(answer(truth, SHRINK[row[0]]).sum()) for truth in truths)
        assert float(row[10]) == pytest.approx(whole / sum(int(truth.sum()) for truth in truths))

        low, high, difference, below, above = map(float, row[12:])
        assert low <= float(row[2]) <= high and below <= difference <= above
        base = next(float(other[2]) for other in rows[1:] if other[:2] == ["base", row[1]])
        assert difference == pytest.approx(float(row[2]) - base)
    means = pd.read_csv(reports / "variants.csv", index_col="variant")["ciou"]
    assert list(means.index) == list(VARIANTS)
    assert means["full"] == pytest.approx(np.mean([float(row[2]) for row in rows[1:] if row[0] == "full"]))
    short = json.loads((reports / "summary.json").read_text())
    assert short["full"] == {"ciou": means["full"], "difference": pytest.approx(means["full"] - means["base"])}
    assert short["base"] == {"ciou": means["base"]}

    text = (reports / "summary.md").read_text()
    assert "`[SEG]` counts as an empty mask" in text and "n = 32 expressions in 2 splits" in text
    header = next(line for line in text.splitlines() if line.startswith("| split"))
    assert header == "| split | n / images | base | full | lora | proj |"
    assert "| refcoco_val | 16 / 8 |" in text and "| **mean** |" in text

    assert "| refcoco_val_captions | base | 50.0 | 25.0 | 12.5 | 1.25 | 25.0 | 75.0 | 12.5 |" in text
    assert text.count("| refcoco_val_captions |") == len(VARIANTS) and "cIoU, [SEG] given |" in text

    assert {path.stem for path in (reports / "figures").iterdir()} == set(PICTURES)
    for name in PICTURES:
        assert f"(figures/{name}.png)" in text
        with Image.open(reports / "figures" / f"{name}.png") as picture:
            assert min(picture.size) >= 200 and picture.width <= 700, name
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 15, f"{name} is all but blank"
    assert not list(reports.rglob(".*")), "a temporary file was left"


@pytest.mark.slow
def test_the_first_lines_say_what_matters(tree: Path) -> None:
    config = make_config(tree)
    results = read_results(tree / "reports", tree / "data", VARIANTS, SPLITS)
    training = read_training(Workspace(tree).training / "plots", Workspace(tree).checkpoint)
    reasons = {variant: find_reasons(results, tree / "data", variant) for variant in VARIANTS}
    protocols = {variant: {"capped": variant == "lora"} for variant in VARIANTS}

    def lines(scores: Scores, config: Config = config) -> dict[str, str]:
        return headline(config, Workspace(tree), results, scores, training, protocols, reasons)

    scores = score(results, 300, 0)
    first = lines(scores)
    assert "not ANS’s synthetic world. Trained on samples of sav (100); evaluated on 32 expressions of" in first["Data"]
    assert first["Data"].endswith("refcoco_val, refcocog_test, a part of each.")
    assert first["Best variant"].startswith("full, cIoU 83.6 %, mean of 2 splits: +55.0 points on base (95 % interval +")
    assert (
        "projector from image features" in first["Best variant"] and "It differs from base, lora, proj." in first["Best variant"]
    )
    few = lines({key: dataclasses.replace(value, images=9) for key, value in scores.items()})
    assert few["Best variant"].endswith("With 9 images nothing can be said about the difference.")
    low = {key: dataclasses.replace(value, ciou=0.1 if key[0] == "full" else value.ciou / 9) for key, value in scores.items()}
    low |= {("proj", MEAN): dataclasses.replace(scores["proj", MEAN], ciou=0.2)}
    best = lines(low)
    assert best["Best variant"].startswith("proj, ") and "not told apart from base." in best["Best variant"]
    assert best["Where it fails"] == (
        "100% of the expressions have an IoU below 0.5 (proj). The main reason, in 100% of these: part of it (at least 80 % of the "
        "mask lies on the object, but most of the object is missing)."
    )
    assert "before training" in lines(low | {("base", MEAN): dataclasses.replace(scores["base", MEAN], ciou=0.3)})["Best variant"]
    assert first["Run"].endswith("were not recorded in this folder.")
    of = {"began": "2026-11-27 20:00", "commit": "abc", "machine": "2 CPU cores", "experiment": "peaty-moss"}
    write_json(Workspace(tree).records / "stage-train.json", of | {"seconds": 133.0})
    assert lines(scores)["Run"].endswith(
        "loop 2. Experiment peaty-moss. Commit abc. Trained 2026-11-27 20:00 in 2 min 13 s on 2 CPU cores."
    )
    for variant in VARIANTS:
        write_json(Workspace(tree).records / f"stage-evaluate@{variant}.json", of | {"seconds": 30})
    assert lines(scores)["Run"].endswith("Evaluated in 2 min 0 s.")
    config.paths.__dict__["root"] = str(Workspace(tree).world)
    assert lines(scores)["Data"].startswith("Synthetic: drawings of coloured shapes")


@pytest.mark.slow
def test_one_split_has_no_mean_and_absent_sources_are_folded(tree: Path) -> None:
    path = tree / "reports" / "data" / "reasonseg.json"
    path.write_text(json.dumps({"source": "reasonseg", "absent": "no such folder", "skipped": {}}))
    reports = run(tree, splits=("refcoco_val",))
    text, page = ((reports / name).read_text(encoding="utf-8") for name in ("summary.md", "report.html"))
    assert "**mean**" not in text and "| refcoco_val | 16 / 8 |" in text and "last row" not in text
    assert 'class="total"><th scope="row">mean' not in page and "<summary>1 missing sources</summary>" in page
    assert '<th scope="row">reasonseg</th><td class="left">no such folder</td>' in page
    assert page.index('id="failures"') < page.index('id="gallery"') < page.index('id="data"')


@pytest.mark.slow
def test_same_results_give_the_same_bytes(built: Path, tree: Path) -> None:
    again = run(tree)
    for name in (
        "summary.csv",
        "summary.md",
        "summary.json",
        "variants.csv",
        "report.html",
        *(f"figures/{f}.png" for f in PICTURES),
    ):
        assert (built / "reports" / name).read_bytes() == (again / name).read_bytes(), name


def test_differences_are_marked_only_where_the_interval_excludes_zero(built: Path) -> None:
    results = read_results(built / "reports", built / "data", VARIANTS, SPLITS)
    scores = score(results, 300, 0)
    for split in (*SPLITS, MEAN):
        full, base, proj = scores["full", split], scores["base", split], scores["proj", split]
        assert dataclasses.replace(full, images=10).differs and not dataclasses.replace(full, images=9).differs
        assert full.difference[0] == pytest.approx(full.ciou - base.ciou)
        assert full.difference[1] <= full.difference[0] <= full.difference[2]
        assert base.interval[0] <= base.ciou <= base.interval[1]
        assert base.difference == (0, 0, 0) and not dataclasses.replace(base, images=10).differs
        # equal but for one image, which a resample can lack
        assert proj.difference[1] == 0 and not dataclasses.replace(proj, images=10).differs
    assert scores["full", MEAN].ciou == pytest.approx(np.mean([scores["full", split].ciou for split in SPLITS]))
    few = [line for line in markdown(results, scores, {}, []).splitlines() if line.startswith("| refcoco")]
    assert few and not any("**" in line for line in few), "a split of six images"
    text = markdown(results, {key: dataclasses.replace(value, images=10) for key, value in scores.items()}, {}, [])
    mean = next(line for line in reversed(text.splitlines()) if line.startswith("| **mean**"))
    assert mean.split("|")[3].strip().startswith("**+") and mean.split("|")[5].strip().startswith("+")


def test_gallery_mixes_kinds_and_never_repeats_an_image(built: Path) -> None:
    results = read_results(built / "reports", built / "data", VARIANTS, SPLITS)
    table = candidates(results, seed=0)
    orders = {kind: order(table, kind) for kind in CHANGED}
    chosen = choose(table, orders, 5)
    assert list(chosen["kind"]) == ["most improved"] * 2 + ["most worsened"] * 2 + ["median change"]
    assert chosen["image_path"].is_unique
    assert set(chosen["image_path"][:2]) == {f"images/{split}_0.png" for split in SPLITS}, "there the base says no [SEG]"
    assert chosen["change"].iloc[0] >= chosen["change"].iloc[-1] >= chosen["change"].iloc[2]
    again = candidates(results, seed=0)
    pd.testing.assert_frame_equal(chosen, choose(again, {kind: order(again, kind) for kind in CHANGED}, 5))
    assert len(choose(table, orders, 99)) == 16
    best = choose(table, {"best": order(table, "best")}, 3)["iou"]
    assert sorted(best, reverse=True) == list(best) and best.iloc[0] == table["iou"].max()
    two = order(table, "worst").sort_values()[:2]
    assert set(choose(table, {"few": two}, 5).index) <= set(two.index), "an order without a row has no such expression"


@pytest.mark.slow
def test_curves_that_a_run_lacks_are_left_out(tree: Path) -> None:
    """Loop 2 off: no second gradient, so no conflict; loop 1 off too: no examples. Figures of an earlier run go."""
    reports = tree / "reports"
    training = read_training(reports / "train" / "plots", Workspace(tree).checkpoint)
    assert [panel.title for panel, _ in panels(training)][1:3] == ["mask cross-entropy", "Dice loss"]
    assert [list(lines) for _, lines in conflict_panels(training.curves)] == [["all", "lora"]] * 2, "loop 2 never reaches fcs"
    assert list(training.curves["loop1_mask"].index[:3]) == [1, 3, 5]
    for path in (reports / "train" / "plots").glob("*"):
        if path.stem.startswith(("loop", "norm", "cosine", "along")):
            path.unlink()
    (Workspace(tree).checkpoint / "examples.json").write_text("[]")
    (reports / "figures").mkdir()
    for name in ("conflict", "examples"):
        (reports / "figures" / f"{name}.png").write_text("of an earlier run")
    run(tree)
    assert not {"conflict", "examples"} & {path.stem for path in (reports / "figures").iterdir()}
    text = (reports / "report.html").read_text()
    assert 'id="curves"' in text and 'id="conflict"' not in text and 'id="examples"' not in text
    assert "figures/examples.png" not in (reports / "summary.md").read_text()


def test_examples_are_read_as_training_writes_them(tree: Path) -> None:
    first, *_, last = read_training(Workspace(tree).training / "plots", Workspace(tree).checkpoint).examples
    assert (first.task, first.step, last.task) == ("loop1", 1, "loop2")
    assert first.texts == {"teacher": "a red cat", "student": "a <b> cat"} and list(last.texts) == ["data", "model"]
    assert first.iou == pytest.approx(0.5) and first.truth.sum() == EXAMPLE_SIDE * 64


@pytest.mark.slow
def test_only_named_results_are_read(tree: Path) -> None:
    """What lies around from other runs is not looked at, even if it is broken."""
    (tree / "reports" / "eval" / "lora" / "refcoco_val.json").write_text("broken")
    (tree / "reports" / "eval" / "full" / "old_split.json").write_text("broken")
    reports = run(tree, ("base", "full"), ("refcoco_val",))
    assert len((reports / "summary.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "missing",
    [
        "reports/eval/full/refcocog_test.json",
        "data/eval/base/refcoco_val.parquet",
        "data/eval/full/refcoco_val_captions.parquet",
        "data/eval/lora/protocol.json",
        "reports/train/plots/loss.tsv",
        "models/checkpoint/manifest.json",
        "reports/data/sa1b_subset.json",
    ],
)
@pytest.mark.second
def test_a_missing_file_is_named(tree: Path, missing: str) -> None:
    (tree / missing).unlink()
    with pytest.raises(ResultsError, match=f"{missing}: missing"):
        run(tree)


def test_results_that_do_not_fit_are_named(tree: Path) -> None:
    path = tree / "reports" / "eval" / "full" / "refcoco_val.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "n": 15}))
    with pytest.raises(ResultsError, match="full/refcoco_val.json: n is 15, but .* has 16"):
        run(tree)
    del values["p70"]
    path.write_text(json.dumps(values))
    with pytest.raises(ResultsError, match="full/refcoco_val.json: has no key 'p70'"):
        run(tree)
    other = tree / "data" / "eval" / "lora" / "refcocog_test.parquet"
    frame = pd.read_parquet(other)
    frame.assign(sent_id=frame["sent_id"] + 1).to_parquet(other)
    path.write_text(json.dumps({**values, "p70": 0.5}))
    with pytest.raises(ResultsError, match="lora/refcocog_test.parquet: other expressions than .*base"):
        run(tree)


@pytest.mark.slow
def test_the_report_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, stages.report; print(*({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


MARKUP = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>\n</style>"
KEYS_OF_FILES = ("image", "truth", "mask", "source", "state", "surgery", "precision", "preset", "task", "role")
"""Of texts that are names of files, masks, or words of which there are few."""


def spoiled(value: Any, key: str = "") -> Any:
    """With markup in every text and in every name that the data may choose."""
    if isinstance(value, dict):
        names = key in ("skipped", "splits", "samples", "texts")
        return {name + MARKUP * names: spoiled(of, name) for name, of in value.items()}
    if isinstance(value, list):
        return [spoiled(of, key) for of in value]
    return value + MARKUP if isinstance(value, str) and key not in KEYS_OF_FILES else value


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.slow
def test_no_text_of_the_data_becomes_markup(built: Path, tree: Path) -> None:
    clean = Elements((built / "reports/report.html").read_text(encoding="utf-8")).found
    for path in (
        *tree.glob("reports/data/*.json"),
        *tree.glob("models/checkpoint/*.json"),
        *tree.glob("data/eval/*/protocol.json"),
    ):
        path.write_text(json.dumps(spoiled(json.loads(path.read_text()))))
    for path in tree.glob("data/eval/*/*.parquet"):
        table = pd.read_parquet(path)
        for name in {"sent", "answer", "caption"} & set(table):
            table[name] += MARKUP
        if "references" in table:
            table["references"] = [[text + MARKUP for text in texts] for texts in table["references"]]
        table.to_parquet(path)
    page = (run(tree) / "report.html").read_text(encoding="utf-8")
    found = Elements(page).found
    assert page.count("alert(1)") > 50, "the texts are there"
    assert [tag for tag, _ in found].count("script") == 1
    assert all(of.get("src", "data:").startswith("data:") for _, of in found if of.get("src") is not None)
    assert not [of for _, of in found if any(name.startswith("on") for name in of)]
    assert {tag for tag, _ in found} <= {tag for tag, _ in clean}
