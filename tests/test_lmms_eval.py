"""`integrations/lmms-eval` in the released lmms-eval: the same masks and cIoU as `stages.evaluate`.

`ANS_LMMS_PYTHON` names an interpreter that has lmms-eval (0.7.3 was tried) beside ANS's packages; torchvision is not needed.
"""

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ans.evaluation.evaluate import evaluate
from ans.workspace import Workspace
from tests import pipeline

PYTHON = os.environ.get("ANS_LMMS_PYTHON")
PACKAGE = pipeline.REPOSITORY / "integrations" / "lmms-eval"


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="ANS_LMMS_PYTHON names no interpreter with lmms-eval")
def test_the_same_masks_as_in_the_pipeline(tmp_path: Path) -> None:
    work = pipeline.prepare(tmp_path)
    values = pipeline.small_values(
        tmp_path / "world", evaluate__splits=["refcoco_val"], evaluate__captions=[], evaluate__tokens_per_batch=1
    )
    workspace = Workspace(work)
    workspace.variant("base").parent.mkdir(parents=True)
    workspace.variant("base").symlink_to(workspace.base)
    evaluate(pipeline.write_params(work, values), "base", workspace)

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{pipeline.REPOSITORY}{os.pathsep}{PACKAGE}"}
    start = "from lmms_eval.models import MODEL_REGISTRY_V2 as known; import ans_lmms_eval; "  # as its entry point does
    start += "known.register_manifest(ans_lmms_eval.manifest(), overwrite=True); "
    start += "from lmms_eval.__main__ import cli_evaluate; cli_evaluate()"
    arguments = ["--model", "ans", "--model_args", "pretrained=models/base,device=cpu", "--tasks", "ans_refcoco_val"]
    arguments += ["--include_path", "lmms", "--batch_size", "1", "--output_path", "out", "--log_samples"]
    for command in (["-m", "ans_lmms_eval.task", "refcoco_val", "-o", "lmms"], ["-c", start, *arguments]):
        done = subprocess.run([str(PYTHON), *command], cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    asked = pq.read_table(work / "lmms" / "ans_refcoco_val" / "test.parquet").to_pylist()
    rows = pq.read_table(workspace.predictions("base") / "refcoco_val.parquet").to_pylist()
    ours = {(row["image_path"], row["region_id"], row["sent_id"]): (row["counts"], row["answer"]) for row in rows}
    (samples,), (results,) = (work / "out").rglob("*samples*.jsonl"), (work / "out").rglob("*results.json")
    theirs = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        answer, document = json.loads(sample["filtered_resps"]), asked[sample["doc_id"]]
        theirs[document["image_path"], document["region_id"], document["sent_id"]] = (answer["counts"], answer["answer"])
    assert theirs == ours and len(ours) > 40
    found = json.loads(results.read_text(encoding="utf-8"))["results"]["ans_refcoco_val"]
    expected = pipeline.metrics(work, "base", "refcoco_val")
    assert [found[f"{name},none"] for name in ("ciou", "miou", "seg_rate")] == pytest.approx(
        [expected[name] for name in ("ciou", "miou", "seg_rate")], abs=1e-12
    )
