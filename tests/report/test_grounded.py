"""The page's section on grounded conversation: its numbers are those of the results, and what was said is no markup."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ans.data import masks
from ans.report.grounded import Grounded, read_grounded
from ans.report.page.sections import grounded as section
from ans.report.results import Results, ResultsError
from ans.report.tables import MEAN, SplitScore, write_means

IMAGES = 12


def row(number: int, miou: float) -> dict[str, Any]:
    mask = np.zeros((20, 30), bool)
    mask[4:12, 5:15] = True
    counts = [masks.from_array(mask)] if number else []
    return {
        "image": f"{number}.png", "height": 20, "width": 30, "caption": "a <b>cat</b>", "phrases": ["a cat"], "counts": counts,
        "true_caption": "a dog", "true_phrases": ["a dog"], "true_counts": [masks.from_array(~mask)], "miou": miou,
    }  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(IMAGES):
        Image.new("RGB", (30, 20), (10 * number,) * 3).save(tmp_path / f"{number}.png")
    for variant, more in (("base", 0.0), ("full", 0.25)):
        rows = [row(number, number / 24 + more) for number in range(IMAGES)]
        metrics = {
            "gcg_miou": float(np.mean([one["miou"] for one in rows])),
            "gcg_ap50": 0.5,
            "seg_per_image": 11 / 12,
            "n": IMAGES,
        }
        metrics |= {"gcg_miou_low": 0.1, "gcg_miou_high": 0.9}
        for folder, suffix, text in (
            ("reports", "json", json.dumps(metrics)), ("data", "jsonl", "".join(json.dumps(one) + "\n" for one in rows)),
        ):  # fmt: skip
            place = tmp_path / folder / "eval" / variant
            place.mkdir(parents=True)
            (place / f"grand_f_val_grounded.{suffix}").write_text(text, encoding="utf-8")
    return tmp_path


class Stub:
    """As much of a page as the section reads."""

    def __init__(self, root: Path, grounded: Grounded | None) -> None:
        self.root, self.grounded, self.seed, self.results = root, grounded, 0, self
        self.variants = ("base", "full")


def test_the_numbers_and_the_words(tree: Path) -> None:
    """Every image gains 25 points, so the interval of the difference is a point."""
    found = read_grounded(tree / "reports", tree / "data", ("base", "full"), ("grand_f_val",))
    assert found.difference("full", "grand_f_val", 100, 0) == pytest.approx((25, 25, 25))
    mean = 11 / 48
    assert found.main()["base", "grand_f_val_grounded"] == pytest.approx({"gcg_miou": mean, "gcg_ap50": 0.5})
    assert found.main()["full", "grand_f_val_grounded"] == pytest.approx(
        {"gcg_miou": mean + 0.25, "gcg_ap50": 0.5, "difference": 0.25}
    )
    scores = {(variant, MEAN): SplitScore(0.5, (0.4, 0.6), (0.1, 0.0, 0.2), 12) for variant in ("base", "full")}
    results = Results(("base", "full"), ("refcoco_val",), {}, {}, {})
    write_means(results, scores, [found.main()], tree / "variants.csv", tree / "summary.json")
    assert json.loads((tree / "summary.json").read_text()) == {
        "base": {"ciou": 0.5, "grand_f_val_grounded": found.main()["base", "grand_f_val_grounded"]},
        "full": {"ciou": 0.5, "difference": 0.1, "grand_f_val_grounded": found.main()["full", "grand_f_val_grounded"]},
    }
    html = section.section(Stub(tree, found))  # type: ignore[arg-type]
    assert f"{100 * 11 / 48:.1f}<small>10.0 to 90.0" in html and "+25.0</span><small>+25.0 to +25.0" in html
    assert "&lt;b&gt;cat" in html and "<b>cat" not in html and html.count('<li class="card"') == section.SHOWN
    assert section.section(Stub(tree, None)) == "" == section.section(Stub(tree, read_grounded(tree, tree, ("base",), ())))  # type: ignore[arg-type]


def test_what_is_not_there_is_named(tree: Path) -> None:
    path = tree / "data" / "eval" / "full" / "grand_f_val_grounded.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(ResultsError, match=r"full/grand_f_val_grounded\.jsonl: other questions than those of base"):
        read_grounded(tree / "reports", tree / "data", ("base", "full"), ("grand_f_val",))
    path.unlink()
    with pytest.raises(ResultsError, match=r"full/grand_f_val_grounded\.jsonl: missing; params.yaml names grand_f_val below"):
        read_grounded(tree / "reports", tree / "data", ("base", "full"), ("grand_f_val",))
