"""Memory and speed of converting a generated Sa2VA-4B-size checkpoint: `python -m tests.bench.convert [--quick]`.

anon_over_largest_shard: the peak of anonymous memory during `convert`, minus what the process had after its imports, over the
size of the largest shard that it writes (2 GB at most; `--quick`: a narrower model with shards of 100 MB).
anon_gb, largest_shard_gb: these two, in GB of 10^9 bytes.
anon_total_gb: the peak with what the process had after its imports.
written_gb, seconds: of all shards, and how long that took.

Needs about 25 GB of disk below `ANS_BENCH` (default: a temporary folder), `--quick` about 1.5 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ans.checkpoints.convert import convert
from ans.config.schema import Convert, LoraSize
from ans.formats import shards
from ans.formats.pth import tensor_bytes
from tests.bench import add_scales, sizes

# width, width of the MLP, key and value width, layers, vocabulary, LoRA rank: Qwen2.5-3B inside Sa2VA-4B, and a narrow one
SIZES = {"4b": (2048, 11008, 256, 36, 151680, 128), "quick": (1024, 4096, 256, 10, 24000, 32)}
SIZES["smoke"] = (256, 512, 64, 2, 2000, 8)
SHARD_BYTES = {"4b": 2 * 10**9, "quick": 10**8, "smoke": 10**6}


def linears(size: str) -> dict[str, tuple[int, int]]:
    """HF name -> shape of every weight that LoRA adapts."""
    width, inner, narrow, layers, _, _ = SIZES[size]
    one = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (narrow, width),
        "self_attn.v_proj": (narrow, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    return {f"language_model.model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in one.items()}


def generate(size: str, folder: Path) -> None:
    """A base in bf16 shards and a training `.pth` with LoRA on all of it, embeddings, head and `text_hidden_fcs`."""
    width, _, _, _, vocabulary, rank = SIZES[size]
    shards.SHARD_BYTES = SHARD_BYTES[size]
    embed = {f"language_model.{name}.weight": (vocabulary, width) for name in ("model.embed_tokens", "lm_head")}
    fcs = {"text_hidden_fcs.0.weight": (width, width), "text_hidden_fcs.2.weight": (256, width)}
    generator = torch.Generator().manual_seed(0)
    base = folder / "base"
    base.mkdir()
    sums = {}
    for group, tensors in {"embed_head": embed, "llm": linears(size), "fcs": fcs}.items():
        described = {name: ("BF16", shape) for name, shape in tensors.items()}

        def data(name: str, tensors: dict[str, tuple[int, int]] = tensors) -> memoryview:
            row = torch.randn(tensors[name][1], generator=generator).bfloat16()
            return tensor_bytes(row.expand(tensors[name]))

        sums |= shards.write_group(base, group, described, data)
    (base / "config.json").write_text(json.dumps(sizes.config_json("sa2va-4b")))
    shards.write_index(base, sums)
    state = {name: torch.randn(shape, generator=generator) for name, shape in {**embed, **fcs}.items()}
    for name, (rows, columns) in linears(size).items():
        key = "mllm.model." + name.replace("language_model.", "language_model.base_model.model.", 1).removesuffix(".weight")
        state[f"{key}.lora_A.default.weight"] = torch.randn(rank, columns, generator=generator)
        state[f"{key}.lora_B.default.weight"] = torch.randn(rows, rank, generator=generator)
    torch.save({"state_dict": state}, folder / "last.pth")


def anonymous() -> int:
    """This process' anonymous memory in bytes."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("Anonymous:")).split()[1])


class Peak:
    """The highest `anonymous` seen while it runs, sampled every 20 ms."""

    def __enter__(self) -> "Peak":
        self.bytes, self._stop = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_scales(parser, quick="a narrower model; below 50 s on two cores")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = "4b" if args.scale == "full" else args.scale
    if args.generate:
        return generate(size, args.generate)
    shards.SHARD_BYTES = SHARD_BYTES[size]
    with TemporaryDirectory(dir=os.environ.get("ANS_BENCH")) as name:
        folder = Path(name)
        # In a process of its own, so that no memory that it leaves counts as this one's baseline.
        command = [sys.executable, "-m", "tests.bench.convert", "--generate", str(folder)]
        subprocess.run(command + ([] if args.scale == "full" else [f"--{args.scale}"]), check=True)
        rank = SIZES[size][-1]
        groups = ("embed_head", "lora", "fcs")
        settings = Convert(
            source=str(folder / "last.pth"), groups=groups, lora=LoraSize(rank=rank, alpha=2.0 * rank, rslora=False),
            precision="float32", code="ByteDance/Sa2VA-4B",
        )  # fmt: skip
        baseline = anonymous()
        started = time.perf_counter()
        with Peak() as peak:
            convert(settings, folder / "base", folder / "hf")
        seconds = time.perf_counter() - started
        written = [path.stat().st_size for path in shards.files(folder / "hf")]
    above = peak.bytes - baseline
    print(f"{size}: {sum(written) / 1e9:.2f} GB in {len(written)} shards, written in {seconds:.1f} s")
    print(f"largest shard         {max(written) / 1e9:8.3f} GB")
    print(f"anonymous memory      {above / 1e9:8.3f} GB above {baseline / 1e9:.3f} GB after imports")
    result = {
        "anon_over_largest_shard": above / max(written),
        "anon_gb": above / 1e9,
        "anon_total_gb": peak.bytes / 1e9,
        "largest_shard_gb": max(written) / 1e9,
        "written_gb": sum(written) / 1e9,
        "seconds": seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
