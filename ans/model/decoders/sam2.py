"""SAM2 (arXiv 2408.00714) or SAM2.1 on images, as Sa2VA uses it. The modules are the `sam2` package's own (facebookresearch/sam2).

Its forward takes no language vector, so prompt encoder and mask decoder are called here; the sparse prompt is two padding points
and, after them, the vector. The official Sa2VA file says nothing about SAM2, whose size is fixed in the official code (Hiera-L at
1024 px). Ours may add a section `sam2_config`; where it is absent, the official sizes hold. SAM2.1 computes the same on images and
has two tensors more, of its memory; `version` in the section tells them apart.
"""

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ans.model import decoder, preprocess
from ans.model.decoder import Levels, Masks, Propagation, ambiguous, resized, wide
from ans.model.keys import KeyTable, Renaming
from ans.model.memory import ConsistentTracker, OfficialTracker, Sam2Tracker

try:
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base
except ModuleNotFoundError as error:
    if error.name != "sam2":
        raise
    # it asks for torchvision, which nothing here uses and which has no build for every torch
    raise ModuleNotFoundError("this mask decoder needs sam2: pip install --no-deps sam2==1.1.0", name="sam2") from error

HF = "grounding_encoder.sam2_model."
Version = Literal["2.0", "2.1"]
ORIGINAL = "sam_mask_decoder_original"
"""The mask decoder as SAM2 was released, beside the fine-tuned one `sam_mask_decoder`, where a folder has both."""
_PARTS = ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "memory_attention", "memory_encoder")


@dataclass(frozen=True)
class Square(decoder.MaskDecoder):
    """What SAM2 and SAM 3's tracker have in common beside their image encoder: an image becomes a square without padding."""

    image_size: int = 1024
    d_model: int = 256
    memory_dim: int = 64
    memory_feedforward: int = 2048
    memory_layers: int = 4

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        if unknown := set(values) - {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"{cls.section}.{sorted(unknown)[0]}: unknown key")
        sizes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**sizes)

    @property
    def stride(self) -> int:
        """Pixels of the side of a cell of the coarsest map."""
        return 16

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def side(self) -> int:
        return 4 * (self.image_size // self.stride)

    def pixels(self, image: Image.Image) -> Tensor:
        return preprocess.normalise([preprocess.sam_image(image, self.image_size)])[0]

    def soft_target(self, mask: Tensor) -> Tensor:
        return F.interpolate(mask[None, None].float(), size=(self.side, self.side), mode="area")[0, 0]

    def image_share(self, height: int, width: int) -> tuple[float, float]:
        return 1.0, 1.0

    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        return resized(resized(wide(low_res), (self.image_size, self.image_size)), size)[:, 0]


@dataclass(frozen=True)
class MaskDecoder(Square):
    """Sizes of SAM2; the defaults are those of `sam2_hiera_l`, which every Sa2VA released with SAM2 uses."""

    title = "SAM2"
    section = "sam2_config"
    released = {}
    parts = tuple(f"{HF}{part}." for part in _PARTS)
    keys = KeyTable(
        spaces={"model": {HF: "sam.model."}, "pth": {HF: HF}, "research": {HF: HF}, "sam2": {HF: ""}},
        shards={"sam2_decoder": (f"{HF}sam_mask_decoder.",), "sam2_encoder": (HF,)},
        renamings=(Renaming(HF, ("model", "pth", "research", "sam2"), ((".gamma", ".g_weight"),)),),  # of the memory encoder
        groups={
            "memory": re.compile(
                re.escape(HF) + r"(memory_attention\.|memory_encoder\.|obj_ptr_proj\.|maskmem_tpos_enc$|no_obj_ptr$)"
            )
        },
        # These two choose and gate masks.
        unreached=re.compile(re.escape(HF) + r"sam_mask_decoder\.(iou_prediction_head|pred_obj_score_head)\."),
    )

    version: Version = "2.0"
    embed_dim: int = 144
    num_heads: int = 2
    stages: tuple[int, ...] = (2, 6, 36, 4)
    global_att_blocks: tuple[int, ...] = (23, 33, 43)
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (7, 7)
    window_spec: tuple[int, ...] = (8, 4, 16, 8)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        sizes = super().read(values)
        if sizes.version not in get_args(Version):
            raise ValueError(f"{cls.section}.version: {sizes.version!r} is unknown; there are {', '.join(get_args(Version))}")
        return sizes

    @classmethod
    def hf_names(cls, names: Iterable[str]) -> dict[str, str]:
        """Return what it means here: Sa2VA-i (kumuji/Sa2VA-i) calls the fine-tuned decoder `sam_mask_decoder_modified` and the original
        one `sam_mask_decoder`."""
        names = list(names)
        tuned, here = f"{HF}sam_mask_decoder_modified.", f"{HF}sam_mask_decoder."
        if not any(name.startswith(tuned) for name in names):
            return super().hf_names(names)
        return {name: name.replace(here, f"{HF}{ORIGINAL}.").replace(tuned, here) for name in names}

    @classmethod
    def check_released(cls, names: Iterable[str]) -> Mapping[str, Any]:
        names = set(names)
        super().check_released(names)
        return {"version": "2.1"} if f"{HF}obj_ptr_tpos_proj.weight" in names else {}

    @property
    def follows(self) -> bool:
        return self.version == "2.0"  # SAM2.1's memory has more to it than ans/model/memory.py keeps

    @property
    def name(self) -> str:
        return "SAM2" if self.version == "2.0" else f"SAM{self.version}"

    def build(self) -> "Network":
        return Network(self, _image_encoder(self), **(OF_21 if self.version == "2.1" else {}))


class Network(decoder.MaskNetwork):
    """SAM2's image path; its memory is in `ans/model/memory.py`. `levels` below are the FPN's three maps at strides 4, 8 and 16:
    (B, D, S/4, S/4), ..."""

    def __init__(self, sizes: Square, image_encoder: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.model = SAM2Base(
            image_encoder=image_encoder,
            memory_attention=_memory_attention(sizes),
            memory_encoder=_memory_encoder(sizes),
            image_size=sizes.image_size,
            backbone_stride=sizes.stride,
            **_FIXED | settings,
        )

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        memory = self.model.memory_attention  # the one module that has dropout, which is for what is trained
        memory.train(mode and any(parameter.requires_grad for parameter in memory.parameters()))
        return self

    @property
    def encoder(self) -> nn.Module:
        return self.model.image_encoder

    @property
    def dtype(self) -> torch.dtype:
        return self.model.no_mem_embed.dtype

    def encode(self, pixels: Tensor) -> Levels:
        level0, level1, level2 = self.model.image_encoder(pixels)["backbone_fpn"]
        return level0, level1, level2

    def project(self, levels: Levels) -> Levels:
        """Map FPN levels to (B, D/8, S/4, S/4), (B, D/4, S/8, S/8), (B, D, S/16, S/16)."""
        masks = self.model.sam_mask_decoder
        coarse = levels[2] + self.model.no_mem_embed.view(1, -1, 1, 1)
        return masks.conv_s0(levels[0]), masks.conv_s1(levels[1]), coarse

    def decode(self, features: Levels, image_index: Tensor, prompts: Tensor) -> Masks:
        sparse, dense = self.padding_prompt(len(prompts))
        sparse = torch.cat([sparse, prompts[:, None].to(sparse.dtype)], dim=1)
        return self._best(features, image_index, sparse, dense, several=True)

    def decode_at(self, features: Levels, image_index: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Masks:
        several = ambiguous(points, boxes)
        if boxes is not None:  # to SAM2 a box is two points more, which come first
            points = torch.cat([boxes.reshape(-1, 2, 2), points], dim=1)
            labels = torch.cat([labels.new_tensor([[2, 3]]).expand(len(boxes), 2), labels], dim=1)
        given = self.model.image_size * points, labels
        sparse, dense = self.model.sam_prompt_encoder(points=given, boxes=None, masks=None)
        return self._best(features, image_index, sparse, dense, several)

    def _best(self, features: Levels, image_index: Tensor, sparse: Tensor, dense: Tensor, several: bool) -> Masks:
        """Return masks for prompts `sparse` (N, n, D) and `dense` (N, D, S/16, S/16): the best of three candidates, or the only one."""
        fine, middle, coarse = features
        candidates, ious, _, object_score = self.model.sam_mask_decoder(
            image_embeddings=coarse[image_index],
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            repeat_image=False,
            high_res_features=[fine[image_index], middle[image_index]],
        )
        return Masks.best(candidates, ious, object_score)

    def expect(self, names: Iterable[str]) -> None:
        if any(name.startswith(f"model.{ORIGINAL}.") for name in names):
            setattr(self.model, ORIGINAL, copy.deepcopy(self.model.sam_mask_decoder))

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        here, both = "sam_mask_decoder.", f"{HF}{ORIGINAL}."
        names = MaskDecoder.hf_names(state)
        prefix = both if any(name.startswith(both) for name in names.values()) else f"{HF}{here}"
        found = {names[name].removeprefix(prefix): tensor for name, tensor in state.items() if names[name].startswith(prefix)}
        found = found or {name.removeprefix(here): tensor for name, tensor in state.items() if name.startswith(here)}
        original = copy.deepcopy(self.model.sam_mask_decoder)
        expected = {name: tensor.shape for name, tensor in original.state_dict().items()}
        if {name: tensor.shape for name, tensor in found.items()} != expected:
            raise ValueError(
                f"holds no SAM2 mask decoder of this size ({len(found)} of {len(expected)} tensors, or other shapes)"
            )
        original.load_state_dict({name: tensor.float() for name, tensor in found.items()})
        setattr(self.model, ORIGINAL, original)

    @property
    def propagations(self) -> tuple[Propagation, ...]:
        if not self.sizes.follows:
            return ()
        return ("original_decoder", "official") if hasattr(self.model, ORIGINAL) else ("official",)

    def tracker(self, propagation: Propagation) -> Sam2Tracker:
        if propagation == "official":
            return OfficialTracker(self)
        return ConsistentTracker(self, getattr(self.model, ORIGINAL))

    def padding_prompt(self, count: int) -> tuple[Tensor, Tensor]:
        """Return sparse (N, 2, D) and dense (N, D, S/16, S/16) embeddings of "no point": SAM2 pads once, its encoder once more."""
        device = self.model.no_mem_embed.device
        points = torch.zeros(count, 1, 2, device=device), -torch.ones(count, 1, dtype=torch.int32, device=device)
        sparse, dense = self.model.sam_prompt_encoder(points=points, boxes=None, masks=None)
        return sparse, dense


# Images never use the memory modules; videos do, and the released weights hold them.
_ROTARY: dict[str, Any] = {"rope_theta": 10000.0, "num_heads": 1, "downsample_rate": 1, "dropout": 0.1}
_FIXED: dict[str, Any] = {
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "use_mask_input_as_output_without_sam": True,
    "directly_add_no_mem_embed": True,
    "use_high_res_features_in_sam": True,
    "multimask_output_in_sam": True,
    "iou_prediction_use_sigmoid": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": False,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
    "multimask_output_for_tracking": True,
    "use_multimask_token_for_obj_ptr": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_mlp_for_obj_ptr_proj": True,
}
"""What is the same at every size: the package's `sam2_hiera_*.yaml` as Sa2VA overrides it."""
OF_21: dict[str, Any] = {
    "no_obj_embed_spatial": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
}
"""What the package's `sam2.1_hiera_*.yaml` have beyond: positions of object pointers in time, and memories without an object."""


class SamePositions(PositionEmbeddingSine):
    """Written once for all images, none of which needs them: only the memory asks for them. SAM2 writes them for each, 90 MB at 1024 px."""

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[-2:])
        known = self.cache[size][None].to(x.device) if size in self.cache else super().forward(x[:1])
        return known.expand(len(x), -1, -1, -1)


def _image_encoder(sizes: MaskDecoder) -> ImageEncoder:
    trunk = Hiera(
        embed_dim=sizes.embed_dim,
        num_heads=sizes.num_heads,
        stages=sizes.stages,
        global_att_blocks=sizes.global_att_blocks,
        window_pos_embed_bkg_spatial_size=sizes.window_pos_embed_bkg_spatial_size,
        window_spec=sizes.window_spec,
    )
    neck = FpnNeck(
        position_encoding=SamePositions(sizes.d_model, normalize=True),
        d_model=sizes.d_model,
        backbone_channel_list=[sizes.embed_dim * 2**stage for stage in reversed(range(len(sizes.stages)))],
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk, neck, scalp=1)


def _memory_attention(sizes: Square) -> MemoryAttention:
    width = sizes.d_model
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=sizes.memory_feedforward,
        dropout=0.1,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(embedding_dim=width, **_ROTARY),
        cross_attention=RoPEAttention(embedding_dim=width, rope_k_repeat=True, kv_in_dim=sizes.memory_dim, **_ROTARY),
        d_model=width,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
    )
    return MemoryAttention(width, pos_enc_at_input=True, layer=layer, num_layers=sizes.memory_layers)


def _memory_encoder(sizes: Square) -> MemoryEncoder:
    width = sizes.d_model
    return MemoryEncoder(
        out_dim=sizes.memory_dim,
        position_encoding=PositionEmbeddingSine(sizes.memory_dim, normalize=True),
        mask_downsampler=MaskDownSampler(embed_dim=width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=width, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True), num_layers=2),
        in_dim=width,
    )
