"""Evaluate one variant on all its splits."""

import logging
from contextlib import ExitStack
from pathlib import Path

import torch

from ans.config import Config
from ans.evaluation.kept import Kept
from ans.evaluation.plan import make_plan
from ans.evaluation.predict import predict, row_tokens
from ans.evaluation.protocol import make_protocol, protocol_fingerprint, protocol_text
from ans.evaluation.tables import CaptionTable, ExpressionTable
from ans.files import write_json
from ans.model.config import ModelConfig
from ans.model.feature_cache import FeatureCache
from ans.model.segmenter import Segmenter
from ans.processes import connect
from ans.progress import Progress
from ans.workspace import Workspace

log = logging.getLogger(__name__)


def evaluate(config: Config, variant: str, workspace: Workspace = Workspace()) -> None:
    """Write metrics, predictions and the protocol of a variant for every split and captioning (`Workspace.results`, `predictions`).

    Batches are planned from the data alone and handed out whole, so any number of processes gives the same numbers. Each is kept
    when it is done; a run that was killed, started again, does the others. Raises what `make_plan` and `record_image` raise.
    """
    settings, scope, root = config.evaluate, config.evaluate.scope, Path(config.paths.root)
    accelerator = connect(settings.precision)
    plan = make_plan(scope, workspace.indexes, root)
    folder, results, predictions = workspace.variant(variant), workspace.results(variant), workspace.predictions(variant)
    model_config = ModelConfig.from_folder(folder)
    batches = plan.batches(lambda *size: row_tokens(model_config, *size) + settings.max_new_tokens, settings.tokens_per_batch)
    protocol = make_protocol(config, variant, folder, model_config, accelerator.device.type, plan)
    kept = Kept(workspace.runs / f"evaluate-{variant}-{protocol_fingerprint(protocol)}")
    if accelerator.is_main_process:
        kept.lock()
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    todo = [number for number in mine if not kept.has(number)]
    if accelerator.is_main_process:
        log.info(protocol_text(protocol))
        if done := sum(map(kept.has, range(len(batches)))):
            log.info(f"continuing {kept.folder}: {done} of {len(batches)} batches are done")
    if todo:
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        model = Segmenter.from_pretrained(folder, accelerator.device, dtype, settings.four_bit, model_config)
        encode = None
        if cache := config.launch.feature_cache_gb:
            encode = FeatureCache(model, settings.precision, 1e9 * cache, workspace.runs, accelerator.num_processes).encode
        images = sum(len(batches[number]) for number in todo)
        with Progress(images, f"evaluate {variant}", "image", quiet=not accelerator.is_main_process) as progress:
            for number in todo:
                items = [plan.item(image) for image in batches[number]]
                with accelerator.autocast():
                    kept.write(number, predict(model, root, items, settings.max_new_tokens, encode))
                progress.update(len(items))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with ExitStack() as stack:
            tables = {name: ExpressionTable(predictions / f"{name}.parquet", protocol) for name in scope.split_results()}
            tables |= {name: CaptionTable(predictions / f"{name}.parquet", protocol) for name in scope.caption_results()}
            for table in tables.values():
                stack.enter_context(table)
            for number in range(len(batches)):
                for row in kept.read(number):
                    tables[row.pop("result")].add(row)
        for name, table in tables.items():
            write_json(
                results / f"{name}.json",
                table.summary() | {"images": plan.counts[name]["images"], "capped": int(scope.capped)},
            )
        write_json(predictions / "protocol.json", protocol)
        kept.remove()
