"""The report on a small tree of made-up results, whose numbers are computed here by hand."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.config import Report
from ans.evaluation.metrics import box_giou, intersection_union, iou, summarise
from ans.report.build import build
from ans.report.gallery import choose
from ans.report.results import ResultsError, read_results
from ans.report.tables import MEAN, markdown, score

VARIANTS = ("base", "full", "lora", "proj")
SHRINK = {"base": 5, "full": 1, "lora": 2, "proj": 5}
"""Pixels by which a variant's masks are smaller than the truth on each side: `proj` equals the base."""
SPLITS = ("refcoco_val", "refcocog_test")
CAPTIONS = ("refcoco_val_captions",)
SETTINGS = Report(seed=0, bootstrap=300, gallery=5)
SIDE = 48


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
                            "sent": ("the square", "the striped square that lies at the lower left")[sent],
                            "iou": iou(intersection, union),
                            "intersection": intersection,
                            "union": union,
                            "forced_intersection": inside,
                            "forced_union": int(truth.sum()),
                            "has_seg": has_seg,
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
            described = {"cider": 1.25, "token_accuracy": 0.5, "exact": 0.25, "cycle_ciou": 0.75, "cycle_miou": 0.125}
            metrics.with_name(f"{split}_captions.json").write_text(json.dumps({**described, "n": 8, "images": 8}))
            pd.DataFrame(rows).sample(frac=1, random_state=1).to_parquet(table)  # order must not matter
            metrics.write_text(json.dumps({**summarise(rows), "images": 8, "protocol": {}}))
    plots = tmp_path / "reports" / "train" / "plots"
    plots.mkdir(parents=True)
    steps = np.arange(60)
    for name in ("loss", "loss_mask", "loss_dice", "loss_language", "train_iou", "lr", "grad_norm"):
        values = 1 - np.exp(-steps / 20) if name == "train_iou" else np.exp(-steps / 20) + 0.1
        pd.DataFrame({"step": steps, name: values}).to_csv(plots / f"{name}.tsv", sep="\t", index=False)
    return tmp_path


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
    build(variants, splits, CAPTIONS, SETTINGS, tree / "root", tree / "reports", tree / "data")
    return tree / "reports"


def test_everything_is_written(built: Path) -> None:
    reports = built / "reports"
    with open(reports / "summary.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == "variant split ciou miou p50 p60 p70 p80 p90 seg_rate ciou_forced n".split()
    assert [row[:2] for row in rows[1:]] == [[variant, split] for variant in VARIANTS for split in SPLITS]
    for row in rows[1:]:
        truths = [scene(row[1], number)[1] for number in range(8)]
        inside = [int(answer(truth, SHRINK[row[0]]).sum()) for truth in truths]
        if row[0] == "base":
            inside[0] = 0
        assert float(row[2]) == pytest.approx(sum(inside) / sum(int(truth.sum()) for truth in truths))
        assert (row[-3], row[-1]) == ("0.875" if row[0] == "base" else "1.0", "16")
        whole = sum(int(answer(truth, SHRINK[row[0]]).sum()) for truth in truths)
        assert float(row[-2]) == pytest.approx(whole / sum(int(truth.sum()) for truth in truths))

    text = (reports / "summary.md").read_text()
    assert "`[SEG]` counts as an empty mask" in text and "n = 32 expressions in 2 splits" in text
    header = next(line for line in text.splitlines() if line.startswith("| split"))
    assert header == "| split | n / images | base | full | lora | proj |"
    assert "| refcoco_val | 16 / 8 |" in text and "| **mean** |" in text

    assert "| refcoco_val_captions | base | 1.25 | 50.0 | 25.0 | 75.0 | 12.5 |" in text
    assert text.count("| refcoco_val_captions |") == len(VARIANTS) and "cIoU, [SEG] given |" in text

    for name, size in (("loss", 500), ("ciou", 300), ("gallery", 500)):
        with Image.open(reports / "figures" / f"{name}.png") as picture:
            assert min(picture.size) >= size
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 50, f"{name} is all but blank"
    assert not list(reports.rglob(".*")), "a temporary file was left"


def test_same_results_give_the_same_bytes(built: Path, tree: Path) -> None:
    again = run(tree)
    for name in ("summary.csv", "summary.md", "figures/loss.png", "figures/ciou.png", "figures/gallery.png"):
        assert (built / "reports" / name).read_bytes() == (again / name).read_bytes(), name


def test_differences_are_marked_only_where_the_interval_excludes_zero(built: Path) -> None:
    results = read_results(built / "reports", built / "data", VARIANTS, SPLITS)
    scores = score(results, 300, 0)
    for split in (*SPLITS, MEAN):
        full, base, proj = scores["full", split], scores["base", split], scores["proj", split]
        assert full.differs and full.difference[0] == pytest.approx(full.ciou - base.ciou)
        assert full.difference[1] <= full.difference[0] <= full.difference[2]
        assert base.interval[0] <= base.ciou <= base.interval[1]
        assert base.difference == (0, 0, 0) and not base.differs
        assert proj.difference[1] == 0 and not proj.differs  # equal but for one image, which a resample can lack
    assert scores["full", MEAN].ciou == pytest.approx(np.mean([scores["full", split].ciou for split in SPLITS]))
    text = markdown(results, scores)
    mean = next(line for line in reversed(text.splitlines()) if line.startswith("| **mean**"))
    assert mean.split("|")[3].strip().startswith("**+") and mean.split("|")[5].strip().startswith("+")


def test_gallery_mixes_kinds_and_never_repeats_an_image(built: Path) -> None:
    results = read_results(built / "reports", built / "data", VARIANTS, SPLITS)
    chosen = choose(results, rows=5, seed=0)
    assert list(chosen["kind"]) == ["most improved"] * 2 + ["most worsened"] * 2 + ["median change"]
    assert chosen["image_path"].is_unique
    assert set(chosen["image_path"][:2]) == {f"images/{split}_0.png" for split in SPLITS}, "there the base says no [SEG]"
    assert chosen["change"].iloc[0] >= chosen["change"].iloc[-1] >= chosen["change"].iloc[2]
    pd.testing.assert_frame_equal(chosen, choose(results, rows=5, seed=0))
    assert len(choose(results, rows=99, seed=0)) == 16


def test_only_named_results_are_read(tree: Path) -> None:
    """What lies around from other runs is not looked at, even if it is broken."""
    (tree / "reports" / "eval" / "lora" / "refcoco_val.json").write_text("broken")
    (tree / "reports" / "eval" / "full" / "old_split.json").write_text("broken")
    reports = run(tree, ("base", "full"), ("refcoco_val",))
    assert len((reports / "summary.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "missing",
    ["reports/eval/full/refcocog_test.json", "data/eval/base/refcoco_val.parquet", "reports/train/plots/loss_dice.tsv"],
)
def test_a_missing_file_is_named(tree: Path, missing: str) -> None:
    (tree / missing).unlink()
    with pytest.raises(ResultsError, match=f"{missing}: not there"):
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


def test_the_report_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, stages.report; print(*({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
