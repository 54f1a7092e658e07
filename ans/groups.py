"""The groups of a model: which of its tensors are trained, exported and chosen together. One table; nothing here needs torch.

Which tensors a group holds is said by the family and the mask decoder whose tensors they are (`KeyTable.shards`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Group = Literal["embed_head", "seg_row", "lora", "proj", "fcs", "sam2_decoder", "memory"]
"""A part of a model that can be trained."""

StoredGroup = Literal["vision", "embed_head", "llm", "lora", "proj", "fcs", "sam2_encoder", "sam2_decoder", "memory"]
"""A part of a model that a foreign checkpoint may hold."""

Part = Literal["language", "vision", "sam"]
"""A part of a model that can be held in 4 bits: the language model, its image encoder, the mask decoder's image encoder."""


@dataclass(frozen=True)
class GroupOf:
    """A group that can be trained. `shard`: the shard that its export changes."""

    shard: str
    about: str


TRAINABLE: dict[str, GroupOf] = {
    "embed_head": GroupOf("embed_head", "token embeddings and output layer of the language model"),
    "seg_row": GroupOf("embed_head", "the row of [SEG] alone in embeddings and output layer"),
    "lora": GroupOf("llm", "low-rank adapters of the language model's linear layers, merged by the export"),
    "proj": GroupOf("proj", "projector from image features to image tokens"),
    "fcs": GroupOf("fcs", "layers from the hidden state of [SEG] to the mask decoder's prompt"),
    "sam2_decoder": GroupOf("sam2_decoder", "mask decoder, without the heads that no loss reaches"),
    "memory": GroupOf("sam2_encoder", "memory that carries masks from frame to frame of a video"),
}

SHARDS = ("vision", "embed_head", "llm", "proj", "fcs", "sam2_decoder", "sam2_encoder")
"""The parts that weights are stored by, in the order in which they are written. Their names are Sa2VA's in every model: LISA's
`sam2_decoder` is the mask decoder of its SAM."""


def shards_of(groups: Iterable[str]) -> dict[str, str]:
    """Return shard -> the trained group that changes it."""
    return {TRAINABLE[group].shard: group for group in groups}
