"""A whole evaluation in this process: killed and continued, batched against one by one, and what it leaves."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ans.config import Config
from ans.data.images import open_image
from ans.evaluation.evaluate import evaluate
from ans.evaluation.metrics import intersection_union, iou, summarise
from ans.evaluation.plan import Item
from ans.evaluation.predict import predict
from ans.evaluation.protocol import code_checksum, weights_checksum
from ans.model.segmenter import Segmenter
from ans.report.results import decode
from ans.workspace import Workspace
from tests import pipeline
from tests.bench.evaluation import differences, make_data, one_by_one, smallest_margin
from tests.golden_case import GoldenSet
from tests.opened import interrupt, opened

TINY = pipeline.REPOSITORY / "weights" / "tiny"
NEAR_ZERO, MARGIN = 1e-3, 1e-3
CHANGES = {
    "evaluate__splits": ["refcoco_val", "refcoco_plus_val", "refcocog_test"],
    "evaluate__captions": ["refcocog_val"],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.prepare(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def config(work: Path) -> Config:
    return pipeline.small_config(work.parent / "world", **CHANGES)


def run(work: Path, config: Config, out: Path) -> dict[str, bytes]:
    """Evaluate the tiny base; every file that is left, by name."""
    at = pipeline.beside(work, out) if not out.exists() else Workspace(out)
    evaluate(config, "base", at)
    files = [*at.results("base").iterdir(), *at.predictions("base").iterdir()]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(
    work: Path, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes], list[Path]]:
    """A whole run: its folder, the files in it, and the images in the order in which they were read, each once."""
    out = tmp_path_factory.mktemp("uninterrupted") / "work"
    with opened(work.parent / "world") as read:
        files = run(work, config, out)
    assert not list(Workspace(out).runs.iterdir()), "kept batches are removed at the end"
    assert len(set(read)) == len(read) > 10
    return out, files, read


@pytest.mark.slow
def test_a_killed_evaluation_continues(work: Path, config: Config, uninterrupted, tmp_path: Path, monkeypatch) -> None:
    """Stopped in several batches, once with a file half written: the same bytes, and no batch that is done is done again."""
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))
    _, expected, order = uninterrupted
    reads, files = [], None
    while files is None:
        try:
            with opened(work.parent / "world", interrupt(4)) as read:
                reads.append(read)
                files = run(work, config, tmp_path / "out")
        except KeyboardInterrupt:
            (kept,) = (tmp_path / "runs").iterdir()
            (kept / ".1.000099.json").write_text('[{"half": ')
            assert not Workspace(tmp_path / "out").reports.exists(), "no result before all is done"
    assert len(reads) >= 3 and files == expected
    starts = [order.index(read[0]) for read in reads]
    for start, read in zip(starts, reads, strict=True):
        assert read == order[start : start + len(read)]
    for before, after, read in zip(starts, starts[1:], reads, strict=False):
        last = before + len(read) - 1  # where it was stopped: a batch is of three images at most here
        assert before < after <= last <= after + 2
    with opened(work.parent / "world") as read:
        assert run(work, config, tmp_path / "out") == files
    assert read == order, "what is done is not kept: another run does it all"


@pytest.mark.slow
def test_other_settings_or_code_do_not_continue(work: Path, config: Config, tmp_path: Path, monkeypatch) -> None:
    """What was kept under another protocol is left alone."""
    monkeypatch.setenv("ANS_RUNS", str(tmp_path / "runs"))

    def images_until_stopped(settings: Config) -> int:
        with opened(work.parent / "world", interrupt(2)) as read, pytest.raises(KeyboardInterrupt):
            run(work, settings, tmp_path / "out")
        return [*order, *read].index(read[0])

    with opened(work.parent / "world", interrupt(2)) as order, pytest.raises(KeyboardInterrupt):
        run(work, config, tmp_path / "out")
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert images_until_stopped(config.changed({"evaluate.max_new_tokens": 9})) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    run_with_other_code(work, config, tmp_path)
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert images_until_stopped(config) == 1, "it goes on with the second image"


def run_with_other_code(work: Path, config: Config, tmp_path: Path) -> None:
    """As `run`, by a copy of the library with another comment; stopped at the second image, too."""
    shutil.copytree(pipeline.REPOSITORY / "ans", tmp_path / "code" / "ans")
    with open(tmp_path / "code" / "ans" / "evaluation" / "metrics.py", "a", encoding="utf-8") as file:
        file.write("# another comment\n")
    shutil.copytree(pipeline.REPOSITORY / "tests", tmp_path / "code" / "tests")
    values = pipeline.small_values(work.parent / "world", **CHANGES)
    (tmp_path / "code" / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    code = f"""
from pathlib import Path
from ans.config import load
from ans.evaluation.evaluate import evaluate
from ans.workspace import Workspace
from tests.golden_case import GoldenSet
from tests.opened import interrupt, opened
with opened(Path({str(work.parent / "world")!r}), interrupt(2)):
    evaluate(load(), "base", Workspace(Path({str(tmp_path / "out")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "code", capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr, done.stderr


@pytest.mark.slow
def test_what_is_left(work: Path, config: Config, uninterrupted) -> None:
    out, files, _ = uninterrupted
    names = (*config.evaluate.scope.split_results(), "refcocog_val_captions")
    assert set(files) == {"protocol.json", *(f"{name}.json" for name in names), *(f"{name}.parquet" for name in names)}
    protocol = json.loads(files["protocol.json"])
    assert protocol["prompt"] == " Please segment {} in this image."
    assert protocol["weights_sha256"] == weights_checksum(work / "models" / "base") and protocol["code_sha256"] == code_checksum()
    assert protocol["precision"] == "float32" and protocol["capped"] is False
    for name in config.evaluate.scope.split_results():
        metrics, table = (
            json.loads(files[f"{name}.json"]),
            pd.read_parquet(Workspace(out).predictions("base") / f"{name}.parquet"),
        )
        expected = summarise(table.to_dict("records")) | {"images": table["image_path"].nunique(), "capped": 0}
        assert metrics == expected and metrics["n"] == protocol["splits"][name]["n"] == len(table)
        assert not table.duplicated(["region_id", "sent_id"]).any()
        assert (
            json.loads(pq.read_schema(Workspace(out).predictions("base") / f"{name}.parquet").metadata[b"protocol"]) == protocol
        )
        for row in table.itertuples():
            masks = [decode(counts, row.height, row.width) for counts in (row.counts, row.gt_counts)]
            assert (row.intersection, row.union) == intersection_union(*masks) and row.iou == iou(row.intersection, row.union)


@pytest.mark.second
def test_captions_and_the_way_back(work: Path, config: Config, uninterrupted) -> None:
    out, files, _ = uninterrupted
    metrics = json.loads(files["refcocog_val_captions.json"])
    table = pd.read_parquet(Workspace(out).predictions("base") / "refcocog_val_captions.parquet")
    assert metrics["n"] == len(table) > 3 and 0 <= metrics["cider"] <= 10
    assert metrics["facts_right"] == table["facts_right"].sum() / (4 * len(table)) and table["facts"].eq(4).all()
    assert metrics["all_right"] == table["facts_right"].eq(4).mean() and metrics["wrong_object"] == table["wrong_object"].mean()
    assert metrics["cycle_ciou"] == table["intersection"].sum() / table["union"].sum()
    model = Segmenter.from_pretrained(TINY)
    row = table.iloc[2]
    image = open_image(work.parent / "world", row["image_path"])
    truth = decode(row["gt_counts"], row["height"], row["width"])
    caption = model.describe([image], [truth[None]], config.evaluate.max_new_tokens)[0][0]
    back = model.segment([image], [[caption]], config.evaluate.max_new_tokens)[0][0].mask
    assert caption == row["caption"]
    assert np.count_nonzero(back != decode(row["counts"], row["height"], row["width"])) <= 1


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Item]]:
    root = tmp_path_factory.mktemp("asked")
    _, plan = make_data(root, 5)
    return root, [plan.item(image) for image in plan.images]


@pytest.mark.slow
def test_batched_is_one_by_one(asked: tuple[Path, list[Item]]) -> None:
    """The rule of `design/README.md`: ids where the margin is clear, pixels away from zero, few masks, the same cIoU."""
    root, items = asked
    model = Segmenter.from_pretrained(TINY)
    single, batched = one_by_one(model, root, items), predict(model, root, items, 16)
    assert len(single) == len(batched) > 30
    clear = [a["answer"] == b["answer"] or smallest_margin(model, root, a) < MARGIN for a, b in zip(single, batched, strict=True)]
    assert all(clear)
    differ, worst = differences(model, root, single, batched)
    assert differ <= 0.05 * len(single) and worst < NEAR_ZERO
    before, after = summarise(single), summarise(batched)
    assert abs(before["ciou"] - after["ciou"]) < 1e-5 and abs(before["ciou_forced"] - after["ciou_forced"]) < 1e-5


@pytest.mark.slow
def test_in_float64_masks_are_identical(asked: tuple[Path, list[Item]]) -> None:
    root, items = asked
    model = Segmenter.from_pretrained(TINY).double()
    positions = model.sam.model.sam_prompt_encoder.pe_layer  # the only part of sam2 that makes float32 of its own
    encode = positions._pe_encoding
    positions._pe_encoding = lambda coords: encode(coords.double())
    single, batched = one_by_one(model, root, items[:2]), predict(model, root, items[:2], 16)
    assert [row["counts"] for row in single] == [row["counts"] for row in batched]
    assert [row["answer"] for row in single] == [row["answer"] for row in batched]
    assert {row["counts"] for row in single} != {single[0]["counts"]}


@pytest.mark.parametrize("name", ["tiny", "sa2va_qwen3vl"])
@pytest.mark.second
def test_a_description_of_special_tokens_is_asked_as_words(asked: tuple[Path, list[Item]], tmp_path: Path, name: str) -> None:
    """A model that describes a region by the token that stands for an image: it neither ends the evaluation nor becomes one."""
    root, items = asked
    folder = TINY if name == "tiny" else GoldenSet(name).write_model(tmp_path / "model", regions=True)
    model = Segmenter.from_pretrained(folder)
    regions = [Item(item.record, (dataclasses.replace(item.questions[0], expression=None),)) for item in items[:2]]
    ids: list[torch.Tensor] = []
    embed = model.vlm.language_model.get_input_embeddings()
    model.vlm.language_model.lm_head.register_forward_hook(
        lambda module, given, logits: logits.index_fill(-1, torch.tensor([model.image_token]), 1e4)
    )
    embed.register_forward_pre_hook(lambda module, given: ids.append(given[0]))
    rows = predict(model, root, regions, 5)
    assert [row["caption"].replace(" ", "") for row in rows] == [5 * model.template.image_token] * 2
    assert all(row["intersection"] == 0 for row in rows), "the way back says no [SEG] either"
    *_, back = (given for given in ids if given.dim() == 2 and given.shape[1] > 1)
    assert len(back) == 2 and not (back == model.image_token).any(), "in the question they are words"


def test_what_the_model_said_itself_is_not_asked_again(asked: tuple[Path, list[Item]], monkeypatch: pytest.MonkeyPatch) -> None:
    root, items = asked
    model, items = Segmenter.from_pretrained(TINY), items[:2]
    given, forced = model.segment_given, []
    monkeypatch.setattr(model, "segment_given", lambda *of: (forced.extend(of[1]), given(*of))[1])
    rows = predict(model, root, items, 16)
    texts = [[question.expression.sent for question in item.questions if question.expression] for item in items]
    assert [text for row in forced for text in row] == [r["sent"] for r in rows if not r["answer"].startswith("Sure, [SEG].")]
    assert 0 < sum(map(len, forced)) < len(rows)
    whole = given([open_image(root, item.record.path) for item in items], texts, "Sure, [SEG].")
    for row, one in zip(rows, (one for answers in whole for one in answers), strict=True):
        truth = decode(row["gt_counts"], row["height"], row["width"])
        assert (row["forced_intersection"], row["forced_union"]) == intersection_union(one.mask, truth)


def test_a_missing_seg_is_an_empty_mask(asked: tuple[Path, list[Item]]) -> None:
    """A model that never says [SEG] free keeps a score for the answer that it is given."""
    root, items = asked
    model = copy.deepcopy(Segmenter.from_pretrained(TINY))
    said = predict(model, root, items[:2], 16)
    with torch.no_grad():
        weight = model.vlm.language_model.lm_head.weight
        weight[model.seg_token] = weight.mean(0)
    rows = predict(model, root, items[:2], 16)
    assert len(rows) == len(said) and all(not row["has_seg"] and row["intersection"] == 0 < row["union"] for row in rows)
    for name in ("forced_intersection", "forced_union"):
        assert [row[name] for row in rows] == [row[name] for row in said]
    assert summarise(rows)["ciou"] == 0 < summarise(rows)["ciou_forced"]
    with pytest.raises(ValueError, match="has no \\[SEG\\]"):
        model.segment_given([open_image(root, items[0].record.path)], [["cup"]], "Sure.")
