"""The segmenting vision-language model. This is the public API.

model = Segmenter.from_pretrained("models/variants/full")
model.segment([image], [["the left cup", "the man in red"]])   # per image, per expression: answer and masks
model.segment_at([image], [[Place(points=[(90, 40)])]])        # per image: masks of what is pointed at
model.describe([image], [masks])                               # per image, per region: a caption
model.ask([image], [["What is here?"]])                        # per image, per question: answer and masks
model.segment_video(frames, ["the ball that rolls away"])      # an iterator: per frame, per expression: answer and masks
model.save_pretrained("folder")

An image is PIL's, an array (h, w, 3) or a tensor (3, h, w); masks are (n, h, w), arrays or tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from ans.groups import Part
from ans.model import loading
from ans.model.config import ModelConfig
from ans.model.inference import Query, Read, Segmentation
from ans.model.modules import Conversations, Features, Forward
from ans.model.places import Place
from ans.model.video import SegmenterVideo

__all__ = ["Conversations", "Features", "Forward", "Place", "Query", "Read", "Segmentation", "Segmenter"]


class Segmenter(SegmenterVideo):
    """A vision-language part and a mask part joined by `[SEG]`; see the module's docstring. Its modules and the forward of training
    are in `ans/model/modules.py`, its answers in `ans/model/inference.py`, those about videos in `ans/model/video.py`."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        four_bit: Sequence[Part] = (),
        config: ModelConfig | None = None,
    ) -> Self:
        """Load a folder in the official Hugging Face layout, strictly: a missing, unexpected or mis-shaped tensor is an error.

        With `dtype=torch.bfloat16` the vision-language model is held in bf16; the mask part and `text_hidden_fcs` stay float32,
        as in training. The linear layers of the parts in `four_bit` are held in 4 bits on top of that. `config`: the folder's, where
        it was read already.
        """
        folder = Path(folder)
        return loading.load(cls, folder, config or ModelConfig.from_folder(folder), torch.device(device), dtype, four_bit)

    def load_original_decoder(self, path: str | Path) -> None:
        """Put the mask decoder as it was before fine-tuning beside the fine-tuned one, for `segment_video`: from SAM2's own checkpoint
        (`sam2_hiera_large.pt`), a `.safetensors`, or a model folder whose decoder was not fine-tuned. `save_pretrained` writes both.

        Raises `FileNotFoundError`, or `ValueError` naming the file, and for a mask decoder that has no memory.
        """
        loading.load_original_decoder(self, Path(path))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, with the same `dtype`, reads back to the same bits: weights in shards by module
        group, config and tokenizer. What was at `folder` is replaced when all is written.

        Raises `ValueError` for a model with adapters or with parts in 4 bits.
        """
        loading.save(self, Path(folder))
