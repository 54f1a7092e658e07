"""A split of an index as a task of lmms-eval: `python -m ans_lmms_eval.task refcoco_val -o lmms/`.

Writes lmms/ans_refcoco_val/: the task's YAML, and a parquet with a row for each expression: image, expression, mask. Run it where ANS
runs, with its params.yaml and data/index.
"""

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ans.config import load
from ans.config.scope import Scope
from ans.data.matching import record_image
from ans.evaluation.plan import make_plan
from ans.workspace import Workspace

YAML = """dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
task: {task}
test_split: test
output_type: generate_until
doc_to_visual: !function scoring.visual
doc_to_text: !function scoring.text
doc_to_target: !function scoring.target
process_results: !function scoring.process
generation_kwargs:
  max_new_tokens: 256
metric_list:
  - {{metric: ciou, aggregation: !function scoring.ciou, higher_is_better: true}}
  - {{metric: miou, aggregation: !function scoring.mean, higher_is_better: true}}
  - {{metric: seg_rate, aggregation: !function scoring.mean, higher_is_better: true}}
metadata:
  version: 1.0
  ans_split: {split}
  questions_sha256: {sha256}
"""


def write(split: str, out: Path, workspace: Workspace, root: Path, max_samples: int | None = None) -> Path:
    """Write the task and return its folder. Raises what `make_plan` raises: the questions are those of an evaluation."""
    plan = make_plan(Scope((split,), max_samples=max_samples), workspace.indexes, root)
    rows: list[dict[str, Any]] = []
    for planned in plan.images:
        item = plan.item(planned)
        content = BytesIO()
        record_image(root, item.record).save(content, "PNG")
        for question in item.questions:
            region, expression = question.region, question.expression
            assert expression is not None
            rows.append(
                {
                    "image": content.getvalue(), "image_path": item.record.path, "height": item.record.height,
                    "width": item.record.width, "region_id": region.region_id, "sent_id": expression.sent_id,
                    "sent": expression.sent, "counts": region.counts, "ignore_counts": region.ignore_counts,
                }
            )  # fmt: skip
    task = f"ans_{split}"
    folder = out / task
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet", row_group_size=64)
    (folder / "scoring.py").write_text("from ans_lmms_eval.scoring import *  # noqa: F403\n", encoding="utf-8")
    (sha256,) = (counts["sha256"] for counts in plan.counts.values())
    content = YAML.format(task=task, split=split, file=(folder / "test.parquet").resolve(), sha256=sha256)
    (folder / f"{task}.yaml").write_text(content, encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", help="<index>_<part>, e.g. refcoco_val")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder that --include_path names")
    parser.add_argument("--limit", type=int, help="only the first so many images")
    chosen = parser.parse_args()
    print(write(chosen.split, chosen.out, Workspace(), Path(load().paths.root), chosen.limit))


if __name__ == "__main__":
    main()
