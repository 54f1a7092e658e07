"""All that a GPU is to be asked, in one call of ten minutes: `python -m tests.bench.gpu [--size sa2va-1b] [--minutes 9] [--out FOLDER]`.
`--preset lisa-7b` is its last table alone: see `tests.bench.lisa`.

Without a GPU it says so and ends. Each row is one whole optimizer step (forwards, backward, surgery, clipping, AdamW, EMA) by the
preset of that size, on one micro-batch that lies in the CPU's memory: supervised (5 objects per image; one tile and seven), and
loop 1, loop 2 and the dual loop with captions of T tokens, at batch 1, 4 and 16. A sample is an image with its objects; of the
dual loop, one of each loop.

MFU: model FLOPs of a step over its seconds and the GPU's dense bf16 peak (`PEAKS`, from the data sheets). Model FLOPs are matrix
products, convolutions and attention, forward, backward and generation, counted by PyTorch's formulas in a step of one sample
without activation checkpointing, times the batch: what checkpointing computes twice is of no use and does not count.
Memory is PyTorch's peak, weights and optimizer state included. A combination that needs too much says so, and the next follows.

Before them: whether decoding by a captured graph says what decoding at once says, on the tiny base (where not, the rest decodes without
graphs, and the first row says so), and bf16 against float32 on the CPU. With each model: one step's gradients twice, how often a
step waits by CUDA's own count, captions by tokens a second with and without graphs, answers by expressions a second (see
`tests.bench.inference`). After them LISA's memory with three choices of LoRA. The 4B model comes first. What is not begun within
`--minutes` says so, what fails says why, and the rest follows. All of it goes to <card>.json in reports/gpu or `--out`, written anew
after each row, with versions and date, and is printed as a table for docs/measured.md.

Needs the packages that training needs, and no data. `--cpu-smoke`: the same code on a tiny model on the CPU.
"""

import argparse
import gc
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from ans.model import generate
from ans.model.config import ModelConfig
from ans.training.mixture import MicroBatch
from tests.bench import inference, lisa, sizes
from tests.bench.sizes import REPOSITORY
from tests.bench.trainer import Trainer, preset

PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "A10G": 70, "RTX 4090": 165}
"""Dense bf16 TFLOP/s of GPUs whose name holds the key; the first that fits counts."""

RESULTS = REPOSITORY / "reports" / "gpu"

Case = tuple[str, int, int]
"""Objective, tiles per image, caption length (0: no caption)."""
Row = dict[str, Any]
CASE_COLUMNS = ("size", "objective", "tiles", "caption_len", "batch")
COLUMNS = (*CASE_COLUMNS, "seconds", "samples_per_s", "mfu", "peak_gib", "said_tokens")
T = TypeVar("T")


def cases(lengths: tuple[int, ...]) -> list[Case]:
    loops = [(name, 1, length) for length in lengths for name in ("loop1", "loop2", "dual")]
    return [("supervised", 1, 0), ("supervised", 7, 0), *loops]


def micro_batches(trainer: Trainer, case: Case, images: int) -> MicroBatch:
    """Random micro-batches of `images` images for one objective."""
    objective, tiles, length = case
    model, points, tasks = trainer.model, trainer.config.train.mask_points, trainer.config.tasks
    if objective == "supervised":
        return [("referring", sizes.referring_batch(model, images, tiles, tasks["referring"].objects_per_image, points))]
    first = ("loop1", sizes.mask_batch(model, images, length, tasks["loop1"].top_k, points))
    second = ("loop2", sizes.caption_batch(model, images, length, points))
    return {"loop1": [first], "loop2": [second], "dual": [first, second]}[objective]


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


COUNTED = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
}
"""Operation -> its formula. PyTorch has none for attention on the CPU."""


class FlopCount(TorchDispatchMode):
    """Counts what runs within it. (`FlopCounterMode` counts per module too, by hooks that fail where no gradient is wanted.)"""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count := COUNTED.get(func._overloadpacket):
            self.total += count(*args, **kwargs, out_val=result)
        return result


def model_flops(trainer: Trainer, case: Case) -> int:
    """Model FLOPs of one sample; see the module's docstring."""
    with trainer.without_checkpointing(), FlopCount() as counter:
        trainer.step(micro_batches(trainer, case, 1))
    return counter.total


def measure(trainer: Trainer, case: Case, images: int, repeats: int) -> dict[str, float]:
    """Seconds of a step (the quickest), peak memory on a GPU, and how many tokens the teacher said."""
    pair = micro_batches(trainer, case, images)
    values = trainer.step(pair)  # warm-up
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    row = {"seconds": min(sizes.seconds(partial(trainer.step, pair)) for _ in range(repeats))}
    row |= {"samples_per_s": images / row["seconds"]}
    if on_gpu:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row | ({"said_tokens": values["loop1_teacher_length"]} if "loop1_teacher_length" in values else {})


def enough_memory(work: Callable[[], T]) -> T | None:
    """What `work` returns, or None when the GPU has too little memory for it; what it had taken is given back."""
    result = None
    try:
        result = work()
    except torch.OutOfMemoryError:
        pass
    if result is None:  # outside `except`, where the traceback would keep the tensors alive
        gc.collect()
        torch.cuda.empty_cache()
    return result


def attempt(row: Row, work: Callable[[], Row], end: float) -> Row:
    """The row with what `work` found, or with why there is nothing: what fails must not cost the rest."""
    if time.monotonic() > end:
        return row | {"error": "no time left"}
    try:
        found = enough_memory(work)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return row | ({"error": "out of memory"} if found is None else found)


def rows_of(
    name: str,
    trainer: Trainer,
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    repeats: int,
    peak: float | None,
    end: float = math.inf,
) -> Iterator[Row]:
    """One row for every combination, printed as it is measured; none is begun after `end`."""
    for case in cases(lengths):
        counted = attempt({}, lambda case=case: {"flops": model_flops(trainer, case)}, end)
        for images in batches:
            row: Row = dict(zip(CASE_COLUMNS, (name, *case, images), strict=True))
            row = attempt(row, partial(measure, trainer, case, images, repeats), end)
            if "seconds" in row:
                flops = counted.get("flops")
                row["model_tflops"] = images * flops / 1e12 if flops else None
                row["mfu"] = row["model_tflops"] / row["seconds"] / peak if flops and peak else None
            print("".join(_cell(row.get(key)) for key in COLUMNS) + f"  {row.get('error', '')}", flush=True)
            yield row


def others(name: str, trainer: Trainer, smoke: bool, end: float = math.inf) -> Iterator[Row]:
    """Generation, evaluation, waiting and determinism by one model."""
    sizes_of = ((2, 3),) if smoke else ((1, 64), (16, 64), (16, 256))
    works: dict[str, list[Callable[[], Row]]] = {
        "generation": [
            partial(inference.generation, trainer.model, *size, graphs) for size in sizes_of for graphs in (False, True)
        ],
        "evaluation": [partial(inference.evaluation, trainer.model, 1 if smoke else 8, 3 if smoke else 16)],
    }
    trainer.model.eval()
    for measured, several in works.items():
        yield from (attempt({"measure": measured, "size": name}, work, end) for work in several)
    trainer.model.train()
    pair = partial(micro_batches, trainer, ("dual", 1, 3 if smoke else 64), 1)
    yield attempt({"measure": "waits", "size": name}, lambda: inference.waits(trainer, pair()), end)
    yield attempt({"measure": "determinism", "size": name}, lambda: inference.determinism(trainer, pair()), end)


def main(names: tuple[str, ...], smoke: bool, minutes: float = 9.0, out: Path | None = RESULTS) -> dict[str, Any]:
    """Measure the models `names`, or a tiny one on the CPU; print a table and return what goes into the JSON line and the file, below
    `out`."""
    if not smoke and not torch.cuda.is_available():
        print("no GPU here, nothing measured (--cpu-smoke runs the code on a tiny model)")
        return {"device": None}
    end = time.monotonic() + 60 * minutes
    label = "cpu" if smoke else torch.cuda.get_device_name()
    peak = next((value for key, value in PEAKS.items() if key in label), None)
    versions = {name: _version(name) for name in ("torch", "transformers", "peft", "accelerate", "sam2")} | {
        "cuda": torch.version.cuda
    }
    print(f"{label}, torch {torch.__version__}, " + (f"bf16 peak {peak} TFLOP/s" if peak else "bf16 peak unknown, so no MFU"))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    more: list[Row] = []
    rows: list[Row] = []
    result: dict[str, Any] = {
        "device": label,
        "date": date,
        "versions": versions,
        "peak_tflops": peak,
        "rows": rows,
        "more": more,
    }

    def keep(kept: list[Row], found: Iterable[Row]) -> None:
        for row in found:
            kept.append(row)
            if out is not None:
                write(result, out)

    device = torch.device("cpu" if smoke else "cuda")
    keep(more, [attempt({"measure": "graphs"}, lambda: inference.graphs(device), end)])
    if more[0].get("same_tokens") != 1:
        print(f"decoding by graphs is left out: {more[0]}")
        generate.PACES["cuda"] = generate.Pace(8, False)
    keep(more, [attempt({"measure": "parity"}, lambda: inference.parity(device), end)])
    for name in ("tiny",) if smoke else names:
        try:
            trainer = _trainer(name, smoke)
        except Exception as error:
            keep(more, [{"measure": "building", "size": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}])
            continue
        keep(more, others(name, trainer, smoke, end))  # first, since steps on random content teach the model to say nothing
        print("".join(map(_cell, COLUMNS)))
        keep(rows, rows_of(name, trainer, *(((3,), (2,), 1) if smoke else ((64, 256), (1, 4, 16), 3)), peak, end))
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
    measured = not smoke and time.monotonic() < end
    keep(more, [attempt({"measure": "lisa"}, lambda: result.update(lisa=lisa.report(measured)) or {}, math.inf)])
    print("\n".join(markdown(result)))
    return result


def _trainer(name: str, smoke: bool) -> Trainer:
    if not smoke:
        return Trainer.of_size(sizes.official(name), preset(name))
    changes = {"precision": "bf16", "checkpoint_activations": True, "mask_points": 64}
    return Trainer.of_size(ModelConfig.from_folder(REPOSITORY / "weights" / "tiny"), preset("tiny", **changes))


def _version(name: str) -> str | None:
    """A package may lie on the path without what says its version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def markdown(result: dict[str, Any]) -> list[str]:
    """The table for docs/measured.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    for row in result["rows"]:
        values = [row.get(key) for key in COLUMNS[:-1]] + [row.get("error", row.get(COLUMNS[-1]))]
        lines.append(
            "| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else "-" if v is None else str(v) for v in values) + " |"
        )
    for row in result["more"]:
        lines.append(
            ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        )
    return lines


def write(result: dict[str, Any], folder: Path) -> Path:
    """Keep the numbers by the card's name."""
    path = folder / f"{re.sub('[^a-z0-9]+', '-', result['device'].lower())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def _cell(value: str | float | None) -> str:
    return f"{value:>14.4g}" if isinstance(value, float) else f"{'-' if value is None else value:>14}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes.SIZES, help="only this one")
    parser.add_argument("--preset", choices=("lisa-7b",), help="memory of LISA on one card instead, measured or estimated")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row of the table is begun later than this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result's file")
    parser.add_argument("--cpu-smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.preset:
        print(json.dumps(lisa.report(torch.cuda.is_available())))
        raise SystemExit
    smoke, names = arguments.cpu_smoke, (arguments.size,) if arguments.size else tuple(reversed(sizes.SIZES))
    print(json.dumps(main(names, smoke, arguments.minutes, None if smoke else arguments.out)))
