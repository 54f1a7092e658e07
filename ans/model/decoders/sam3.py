"""SAM 3's tracker (arXiv 2511.16719) on images, as Sa2VA-Qwen3-VL-4B-SAM3 uses it: SAM2.1 with another image encoder, of stride 14 at
1008 px, and with the object score applied, so that an absent object has no mask.

Prompt encoder, mask decoder and memory are the `sam2` package's own, the image encoder is transformers' (`Sam3ViTModel`). The
release has the names of the `sam3` package, and beside the tracker's feature pyramid that of SAM 3's detector, which is unused here
and kept as it is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam3VisionConfig
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck, Sam3ViTModel

from ans.model import decoder
from ans.model.decoder import Levels, Masks
from ans.model.decoders import sam2
from ans.model.keys import Fusion, KeyTable, Renaming

HF = sam2.HF
_VISION = f"{HF}backbone.vision_backbone."
_TRUNK, _MEMORY = f"{_VISION}trunk.", f"{HF}maskmem_backbone."
_MODEL = "sam.model."
_SPACES = ("pth", "research", "sam3")
NOTHING = -1024.0
"""Logit of an absent object."""


def _pyramid(name: str) -> Renaming:
    """Return the names of one of the two feature pyramids."""
    layers = (
        (f"{name}.0.scale_layers.0.", f"{name}.0.dconv_2x2_0."),
        (f"{name}.0.scale_layers.2.", f"{name}.0.dconv_2x2_1."),
        (f"{name}.1.scale_layers.0.", f"{name}.1.dconv_2x2."),
    )
    return Renaming(f"{_VISION}{name}.", ("model",), (*layers, (".proj1.", ".conv_1x1."), (".proj2.", ".conv_3x3.")))


_RENAMINGS = (
    Renaming(
        _TRUNK,
        ("model",),
        (
            ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
            ("trunk.layer_norm.", "trunk.ln_pre."),
            ("trunk.layers.", "trunk.blocks."),
            (".layer_norm1.", ".norm1."),
            (".layer_norm2.", ".norm2."),
            (".attention.o_proj.", ".attn.proj."),
            (".attention.qkv.", ".attn.qkv."),
        ),
    ),
    _pyramid("sam2_convs"),
    _pyramid("convs"),
    Renaming(f"{HF}sam_mask_decoder.", ("model",), ((".mlp.layers.0.", ".mlp.lin1."), (".mlp.layers.1.", ".mlp.lin2."))),
    Renaming(_MEMORY, ("model", *_SPACES), ((".gamma", ".g_weight"),)),
)


@dataclass(frozen=True)
class MaskDecoder(sam2.Square):
    """`vision`: as `Sam3VisionConfig` has it; `image_size` is that of its backbone."""

    title = "SAM 3"
    section = "sam3_config"
    released = {}
    parts = (_TRUNK, f"{_VISION}sam2_convs.", f"{HF}sam_prompt_encoder.", f"{HF}sam_mask_decoder.", _MEMORY)
    keys = KeyTable(
        spaces={
            "model": {
                HF: _MODEL,
                _TRUNK: f"{_MODEL}image_encoder.trunk.",
                f"{_VISION}sam2_convs.": f"{_MODEL}image_encoder.neck.fpn_layers.",
                f"{_VISION}convs.": f"{_MODEL}image_encoder.detector_neck.fpn_layers.",
                _MEMORY: f"{_MODEL}memory_encoder.",
                f"{HF}transformer.encoder.": f"{_MODEL}memory_attention.",
            },
            "pth": {HF: HF},
            "research": {HF: HF},
            "sam3": {HF: "tracker.", _VISION: "detector.backbone.vision_backbone."},
        },
        shards={"sam2_decoder": (f"{HF}sam_mask_decoder.",), "sam2_encoder": (HF,)},
        renamings=_RENAMINGS,
        fusions=(
            Fusion(
                _TRUNK,
                ("model",),
                ".attention.qkv.",
                tuple(f".attention.{part}_proj." for part in "qkv"),
                lambda tensor: tensor.chunk(3),
                torch.cat,
            ),
            Fusion(  # the first row is that of a class token, which there is none of
                _TRUNK,
                ("model",),
                "pos_embed",
                ("embeddings.class_position", "embeddings.position_embeddings"),
                lambda tensor: (tensor[:, :1], tensor[:, 1:]),
                lambda parts: torch.cat(parts, dim=1),
            ),
        ),
        unreached=re.compile(re.escape(HF) + r"sam_mask_decoder\.(iou_prediction_head|pred_obj_score_head)\."),
    )

    image_size: int = 1008
    vision: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def marked_by(cls, names: Iterable[str]) -> bool:
        return any(name.startswith(_TRUNK) for name in names)

    @property
    def encoder(self) -> Sam3VisionConfig:
        """transformers' configuration of the image encoder."""
        backbone = {"model_type": "sam3_vit_model", **self.vision, "image_size": self.image_size}
        return Sam3VisionConfig(backbone_config=backbone, fpn_hidden_size=self.d_model)

    @property
    def stride(self) -> int:
        return _trunk(self.encoder).patch_size

    def build(self) -> "Network":
        return Network(self, ImageEncoder(self.encoder), **sam2.OF_21, sam_mask_decoder_extra_args=_SINGLE)


_SINGLE = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""How the released tracker chooses where one mask is asked for."""


def _trunk(config: Sam3VisionConfig) -> Any:  # transformers declares parts of a configuration as all that they may be made from
    return config.backbone_config


class ImageEncoder(nn.Module):
    """SAM 3's vision transformer with the tracker's feature pyramid, of which the coarsest level is unused, and with the detector's."""

    def __init__(self, config: Sam3VisionConfig) -> None:
        super().__init__()
        self.patch = _trunk(config).patch_size
        self.trunk = Sam3ViTModel(_trunk(config))
        self.neck, self.detector_neck = Neck(config), Neck(config)
        embeddings = self.trunk.embeddings
        embeddings.class_position = nn.Parameter(torch.zeros_like(embeddings.position_embeddings[:, :1]))

    def forward(self, pixels: Tensor) -> dict[str, list[Tensor]]:
        """Return the maps of three levels, named as the `sam2` package does it."""
        side = pixels.shape[-1] // self.patch
        cells = self.trunk(pixels).last_hidden_state.mT.unflatten(2, (side, side))
        return {"backbone_fpn": [layer(cells) for layer in self.neck.fpn_layers[:3]]}


class Neck(Sam3VisionNeck):
    """With its width where the `sam2` package looks for it."""

    def __init__(self, config: Sam3VisionConfig) -> None:
        super().__init__(config)
        self.d_model: int = config.fpn_hidden_size


class Network(sam2.Network):
    """Levels are at strides of a quarter of a cell, of half a cell and of one."""

    def decode(self, features: Levels, image_index: Tensor, prompts: Tensor) -> Masks:
        found = super().decode(features, image_index, prompts)
        assert found.object_score is not None
        visible = found.object_score[..., None] > 0  # (N, 1, 1)
        candidates = found.candidates.where(visible[..., None], NOTHING)
        return replace(found, low_res=found.low_res.where(visible, NOTHING), candidates=candidates)

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        decoder.MaskNetwork.load_original(self, state)
