"""The page's section on videos: its numbers are those of the results, and its pictures are closed markup with words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ans.data import masks
from ans.report.page.sections import videos as section
from ans.report.results import ResultsError
from ans.report.videos import Videos, read_videos

VARIANTS = ("base", "full")
CLIPS, FRAMES = 12, 7


def row(clip: int, jf: float, frames: int = FRAMES) -> dict[str, Any]:
    mask = np.zeros((20, 30), bool)
    mask[4:12, 5:15] = True
    return {
        "clip": f"c{clip}", "id": "0", "text": f"the <b>{clip}</b>", "kind": "", "height": 20, "width": 30, "j": jf, "f": jf,
        "a": None, "r": None, "answer": "", "has_seg": clip > 0, "names": [f"{t:05d}" for t in range(frames)],
        "paths": [f"c/{t}.png" for t in range(frames)],
        "counts": [masks.from_array(mask)] * frames, "true": [masks.from_array(~mask)] * frames,
    }  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "c").mkdir()
    for t in range(FRAMES):
        Image.new("RGB", (30, 20), (10 * t,) * 3).save(tmp_path / "c" / f"{t}.png")
    for variant in VARIANTS:
        rows = [row(clip, 0.3 + 0.02 * clip + 0.1 * (variant == "full")) for clip in range(CLIPS)]
        mean = float(np.mean([one["j"] for one in rows]))
        metrics = {"j": 100 * mean, "f": 100 * mean, "jf": 100 * mean, "jf_low": 1.0, "jf_high": 99.0, "seg_rate": 0.9}
        for folder, text in (
            ("reports", json.dumps(metrics | {"n": CLIPS, "clips": CLIPS, "skipped": 0})),
            ("data", "".join(json.dumps(one) + "\n" for one in rows)),
        ):
            place = tmp_path / folder / "eval" / variant
            place.mkdir(parents=True)
            (place / f"motion_video.{'json' if folder == 'reports' else 'jsonl'}").write_text(text)
    return tmp_path


class Stub:
    """What the section asks of a page."""

    def __init__(self, root: Path, videos: Any) -> None:
        self.root, self.videos, self.seed, self.results = root, videos, 0, self
        self.variants = VARIANTS


def test_numbers_and_strips(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "compared", lambda results: "full")
    found = read_videos(tree / "reports", tree / "data", VARIANTS, ("motion",))
    assert found.difference("full", "motion", 500, 0) == pytest.approx((10, 10, 10))
    assert found.main()["base", "motion_video"] == pytest.approx({"jf": 41})
    assert found.main()["full", "motion_video"] == pytest.approx({"jf": 51, "difference": 10})
    html = section.section(Stub(tree, found))  # type: ignore[arg-type]
    assert "<td>41.0<small>1.0 to 99.0</small></td><td>51.0<" in html and '<span class="up">+10.0</span>' in html
    assert html.count('<li class="card">') == 3 and html.count("<img ") == 3 * 5 * 2
    # of base nine are below one half (0.30, 0.32, ..., 0.52), of full five, the first of them without [SEG]
    assert '<th scope="row">motion, base</th><td>10</td><td>1</td>' in html
    assert '<th scope="row">motion, full</th><td>5</td><td>1</td>' in html
    assert "J 62.0" in html and "J 40.0, F 40.0; no [SEG]" in html  # the best of full, and its worst
    assert "the &lt;b&gt;11&lt;/b&gt;" in html and "<b>11" not in html
    assert [name for name in ("00000", "00002", "00003", "00004", "00006") if f"frame {name}" not in html] == []


def test_without_sets_there_is_no_section(tree: Path) -> None:
    assert section.section(Stub(tree, read_videos(tree / "reports", tree / "data", VARIANTS, ()))) == ""  # type: ignore[arg-type]


def test_what_is_missing_or_does_not_fit_is_named(tree: Path) -> None:
    path = tree / "data" / "eval" / "full" / "motion_video.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ResultsError, match="full/motion_video.jsonl: other questions than those of base"):
        read_videos(tree / "reports", tree / "data", VARIANTS, ("motion",))
    path.unlink()
    with pytest.raises(ResultsError, match="full/motion_video.jsonl: missing"):
        read_videos(tree / "reports", tree / "data", VARIANTS, ("motion",))


def test_the_line_names_every_variant_on_each_scored_set() -> None:
    metrics = {("base", "a"): {"jf": 67.26}, ("full", "a"): {"jf": 87.3}, ("base", "blind"): {}, ("full", "blind"): {}}
    assert Videos(("base", "full"), ("a", "blind"), metrics, {}).line() == "J&F in percent: a: base 67.3, full 87.3."
    assert Videos(("base", "full"), ("blind",), metrics, {}).line() == ""
