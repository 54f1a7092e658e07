"""Features of the frozen encoders, kept on disk: the variants of an evaluation share them, and the epochs of a training."""

import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from ans.files import replacing
from ans.model.family import Grid, Pixels, Visual
from ans.model.segmenter import Features, Segmenter
from ans.provenance import digest

DIGEST = hashlib.sha256().digest_size

REMOTE = ("architectures", "auto_map")
"""Keys of config.json that conversion adds for others' code: the base, which has none, shares the features too."""


def _without_remote(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in REMOTE}
    return {key: _without_remote(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


class FeatureCache:
    """Encodes images as the model does; what it has encoded lies in `runs`/features/.

    One file holds images that are encoded together, since in other company they may come out with other last bits. Its name is a
    sha256 over all that it depends on: the pixels, the encoders' tensors, their settings and code, the precision, the machine. A
    file begins with the sha256 of the rest. All files together stay within `limit` bytes, of which each of `processes` that share
    the folder takes its part.
    """

    def __init__(self, model: Segmenter, precision: str, limit: float, runs: Path, processes: int = 1) -> None:
        self.folder = runs / "features"
        self._model, self._limit, self._processes, self._started = model, limit, processes, time.time()
        self._room, self._full = 0.0, False
        device = model.device
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        settings = {
            "config": _without_remote(model.config.values),
            "machine": [machine, torch.get_num_threads(), precision],
            "code": [digest(__name__), *(version(name) for name in ("torch", "transformers", "sam2", "pillow"))],
        }
        self._about = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for encoder in (model.vlm.vision, model.sam.encoder):
            for name, tensor in encoder.state_dict().items():
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                self._about.update(save({name: whole.contiguous()}))

    def encode(self, images: Sequence[Image.Image]) -> Features:
        """Encode as `Segmenter.encode_images` does, to the same bits."""
        key = self._about.copy()
        for image in images:
            key.update(repr((image.mode, image.size)).encode() + image.tobytes())
        return self._kept(key.hexdigest(), lambda: self._model.encode_images(images))

    def encode_pixels(self, pixels: Sequence[Pixels], sam_pixels: Tensor, sizes: list[tuple[int, int]]) -> Features:
        """Encode as `Segmenter.encode_pixels` does, but each image by itself: in training it comes in other company every time."""
        return Features.join([self._one(one, sam_pixels[i : i + 1], sizes[i]) for i, one in enumerate(pixels)])

    def _one(self, pixels: Pixels, sam: Tensor, size: tuple[int, int]) -> Features:
        key = self._about.copy()
        for values in (pixels.values, sam):
            key.update(repr((tuple(values.shape), pixels.grid, size)).encode() + values.numpy().tobytes())
        return self._kept(key.hexdigest(), lambda: self._model.encode_pixels([pixels], sam, [size]))

    def _kept(self, key: str, encode: Callable[[], Features]) -> Features:
        path = self.folder / f"{key}.pt"
        found = self._read(path)
        if found is None:
            found = encode()
            self._write(path, found)
        return found

    def _read(self, path: Path) -> Features | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, content = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            tqdm.write(f"{path}: damaged; its images are encoded again")
            return None
        with suppress(FileNotFoundError):  # another process may just have removed it
            os.utime(path)
        stored = torch.load(io.BytesIO(content), map_location=self._model.device, weights_only=True)
        visual = [Visual(tokens, Grid(*grid), deep) for tokens, grid, deep in stored["visual"]]
        return Features(visual, stored["levels"], stored["sizes"])

    def _write(self, path: Path, features: Features) -> None:
        file = io.BytesIO()
        visual = [(one.tokens, dataclasses.astuple(one.grid), one.deep) for one in features.visual]
        # tensors keep their strides, on which later kernels, and so last bits, depend
        torch.save({"visual": visual, "levels": features.levels, "sizes": features.sizes}, file)
        content = file.getbuffer()
        if self._make_room(DIGEST + len(content)):
            with replacing(path) as temporary, open(temporary, "wb") as output:
                output.write(hashlib.sha256(content).digest())
                output.write(content)
            self._room -= DIGEST + len(content)

    def _make_room(self, size: int) -> bool:
        """Return whether this many bytes fit, once files that this run has not used went, the oldest first.

        Those that it has used stay: the next variant, or epoch, asks in the same order, and if the newest always drove out the
        oldest it would find none. The folder is looked at only now and then, since it may hold a file for each of many images.
        """
        if size > self._room and not self._full:
            files = []
            for path in self.folder.glob("*") if self.folder.is_dir() else ():
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    files.append((stat.st_mtime, stat.st_size, path))
            total = sum(bytes_ for _, bytes_, _ in files)
            wanted = self._limit - max(size * self._processes, 0.05 * self._limit)
            for used, bytes_, path in sorted(files):
                if total <= wanted or used >= self._started:
                    break
                path.unlink(missing_ok=True)
                total -= bytes_
            self._room = (self._limit - total) / self._processes
            self._full = size > self._room
        return size <= self._room
