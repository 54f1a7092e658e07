"""SAM (arXiv 2304.02643), as LISA uses it: the vector is the only sparse prompt, and the answer is the first of the decoder's masks.

The modules are transformers' own; the section `sam_config` is as `SamConfig` has it. An image is scaled to SAM's longest side and
padded to a square.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel

from ans.model import decoder, preprocess
from ans.model.decoder import Levels, Masks, ambiguous, resized, wide
from ans.model.keys import KeyTable

HF = "sam."
VIT_B = {
    "vision_config": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "global_attn_indexes": [2, 5, 8, 11],
    },
    "prompt_encoder_config": {},
    "mask_decoder_config": {},
}
"""SAM ViT-B; what is not named is as `SamConfig` has it."""


@dataclass(frozen=True)
class MaskDecoder(decoder.MaskDecoder):
    title = "SAM"
    section = "sam_config"
    released = VIT_B
    parts = tuple(f"{HF}{part}." for part in ("vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding"))
    keys = KeyTable(
        spaces={"model": {HF: "sam.sam."}, "pth": {HF: HF}, "sam": {HF: ""}},
        shards={"sam2_decoder": (f"{HF}mask_decoder.",), "sam2_encoder": (HF,)},
        # The IoU head would choose among the masks, of which only the first is taken.
        unreached=re.compile(r"sam\.mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[1-3])\."),
    )

    sam: SamConfig

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        return cls(SamConfig(**values))

    @property
    def vision(self) -> Any:  # transformers declares sizes, and parts of a configuration, as all that they may be made from
        return self.sam.vision_config

    @property
    def image_size(self) -> int:
        return self.vision.image_size

    @property
    def width(self) -> int:
        return cast(SamMaskDecoderConfig, self.sam.mask_decoder_config).hidden_size

    @property
    def side(self) -> int:
        return 4 * (self.image_size // self.vision.patch_size)

    @property
    def tied(self) -> dict[str, str]:
        return {f"{HF}prompt_encoder.shared_embedding.positional_embedding": f"{HF}shared_image_embedding.positional_embedding"}

    def pixels(self, image: Image.Image) -> Tensor:
        height, width = preprocess.longest_side(image.height, image.width, self.image_size)
        pixels = preprocess.normalise([preprocess.resize(image, width, height, Image.Resampling.BILINEAR)])[0]
        return F.pad(pixels, (0, self.image_size - width, 0, self.image_size - height))

    def soft_target(self, mask: Tensor) -> Tensor:
        height, width = mask.shape
        height, width = preprocess.longest_side(height, width, self.image_size)
        scaled = F.interpolate(mask[None, None].float(), size=(height, width), mode="area")
        padded = F.pad(scaled, (0, self.image_size - width, 0, self.image_size - height))
        return F.avg_pool2d(padded, self.image_size // self.side)[0, 0]

    def image_share(self, height: int, width: int) -> tuple[float, float]:
        height, width = preprocess.longest_side(height, width, self.image_size)
        return width / self.image_size, height / self.image_size

    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = preprocess.longest_side(*size, self.image_size)
        return resized(resized(wide(low_res), (self.image_size, self.image_size))[..., :height, :width], size)[:, 0]

    def build(self) -> "Network":
        return Network(self.sam)


class Network(decoder.MaskNetwork):
    """One map, (B, D, S/16, S/16), which the decoder reads as it is."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.sam = SamModel(config)

    @property
    def encoder(self) -> nn.Module:
        return self.sam.vision_encoder

    @property
    def dtype(self) -> torch.dtype:
        return self.sam.vision_encoder.patch_embed.projection.weight.dtype

    def encode(self, pixels: Tensor) -> Levels:
        return (self.sam.vision_encoder(pixels).last_hidden_state,)

    def project(self, levels: Levels) -> Levels:
        return levels

    def decode(self, features: Levels, image_index: Tensor, prompts: Tensor) -> Masks:
        sparse = prompts[:, None, None].to(features[0].dtype)  # one prompt of one token for each copy of its image
        candidates, ious = self._candidates(features, image_index, sparse, several=False)
        return Masks(candidates[:, 0], candidates, ious, None)

    def decode_at(self, features: Levels, image_index: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Masks:
        side = self.sam.prompt_encoder.input_image_size
        given = (side * points[:, None], labels[:, None]) if points.shape[1] else (None, None)
        sparse, _ = self.sam.prompt_encoder(*given, None if boxes is None else side * boxes[:, None], None)
        candidates, ious = self._candidates(features, image_index, sparse.to(features[0].dtype), ambiguous(points, boxes))
        return Masks.best(candidates, ious, None)

    def _candidates(self, features: Levels, image_index: Tensor, sparse: Tensor, several: bool) -> tuple[Tensor, Tensor]:
        """Return logits (N, K, S/4, S/4) and predicted IoUs (N, K) for prompts `sparse` (N, 1, n, D); K is 3, or 1."""
        maps = features[0][image_index]
        dense = self.sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(maps)
        places = self.sam.get_image_wide_positional_embeddings().expand_as(maps)
        masks, ious = self.sam.mask_decoder(maps, places, sparse, dense, multimask_output=several)
        return masks[:, 0], ious[:, 0]
