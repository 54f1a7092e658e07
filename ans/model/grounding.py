"""The mask part: `Grounding` is all that trainer, evaluation and checkpoints use of it; SAM2 and SAM fill it.

Image features once, then one mask for every prompt vector. SAM2's modules are the `sam2` package's own (facebookresearch/sam2),
as Sa2VA uses them on images: its forward takes no language vector, so prompt encoder and mask decoder are called here, and the
sparse prompt is two padding points and, after them, the vector. SAM's are transformers' own, as LISA uses them: the vector is the
only sparse prompt, and the answer is the first of the decoder's masks.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from transformers import SamModel

from ans.model.config import LisaConfig, Sa2vaConfig, Sam2Sizes


@dataclass(frozen=True)
class Masks:
    """One mask per prompt. `low_res` (N, S/4, S/4) logits of the chosen mask; the K `candidates` (N, K, S/4, S/4) and their
    predicted `ious` (N, K); `object_score` (N, 1) logits, which Sa2VA does not apply to images, None where there are none."""

    low_res: Tensor
    candidates: Tensor
    ious: Tensor
    object_score: Tensor | None


Levels = tuple[Tensor, ...]
"""Feature maps of B images, each (B, channels, height, width)."""


class Grounding(nn.Module):
    """Pixels to image features to masks."""

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The frozen image encoder."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What pixels have to be in."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Levels:
        """(B, 3, S, S) normalised pixels -> the encoder's maps. Depends on no tensor that is ever fine-tuned."""

    @abstractmethod
    def project(self, levels: Levels) -> Levels:
        """The encoder's maps -> what the mask decoder reads."""

    @abstractmethod
    def decode(self, features: Levels, image_index: Tensor, prompts: Tensor) -> Masks:
        """Masks for `prompts` (N, D), the n-th of them on image `image_index[n]` of the projected features."""


class Sam2(Grounding):
    """SAM2's image path. `levels` below are the FPN's three maps at strides 4, 8 and 16: (B, D, S/4, S/4), ..."""

    def __init__(self, config: Sa2vaConfig) -> None:
        super().__init__()
        self.model = _build(config.sam2)

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
        """FPN levels -> (B, D/8, S/4, S/4), (B, D/4, S/8, S/8), (B, D, S/16, S/16)."""
        decoder = self.model.sam_mask_decoder
        coarse = levels[2] + self.model.no_mem_embed.view(1, -1, 1, 1)
        return decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), coarse

    def decode(self, features: Levels, image_index: Tensor, prompts: Tensor) -> Masks:
        sparse, dense = self._padding_prompt(len(prompts))
        fine, middle, coarse = features
        candidates, ious, _, object_score = self.model.sam_mask_decoder(
            image_embeddings=coarse[image_index],
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, prompts[:, None].to(sparse.dtype)], dim=1),
            dense_prompt_embeddings=dense,
            multimask_output=True,
            repeat_image=False,
            high_res_features=[fine[image_index], middle[image_index]],
        )
        best = ious.argmax(-1)
        return Masks(candidates[torch.arange(len(best), device=best.device), best], candidates, ious, object_score)

    def _padding_prompt(self, count: int) -> tuple[Tensor, Tensor]:
        """Sparse (N, 2, D) and dense (N, D, S/16, S/16) embeddings of "no point": SAM2 pads once, its encoder once more."""
        device = self.model.no_mem_embed.device
        points = torch.zeros(count, 1, 2, device=device), -torch.ones(count, 1, dtype=torch.int32, device=device)
        sparse, dense = self.model.sam_prompt_encoder(points=points, boxes=None, masks=None)
        return sparse, dense


class Sam(Grounding):
    """SAM (arXiv 2304.02643). One map, (B, D, S/16, S/16), which the decoder reads as it is."""

    def __init__(self, config: LisaConfig) -> None:
        super().__init__()
        self.sam = SamModel(config.sam)

    @property
    def encoder(self) -> nn.Module:
        return self.sam.vision_encoder

    @property
    def dtype(self) -> torch.dtype:
        return self.sam.vision_encoder.pos_embed.dtype

    def encode(self, pixels: Tensor) -> Levels:
        return (self.sam.vision_encoder(pixels).last_hidden_state,)

    def project(self, levels: Levels) -> Levels:
        return levels

    def decode(self, features: Levels, image_index: Tensor, prompts: Tensor) -> Masks:
        maps = features[0][image_index]
        sparse = prompts[:, None, None].to(maps.dtype)  # one prompt of one token for each copy of its image
        dense = self.sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(maps)
        places = self.sam.get_image_wide_positional_embeddings().expand_as(maps)
        masks, ious = self.sam.mask_decoder(maps, places, sparse, dense, multimask_output=False)
        return Masks(masks[:, 0, 0], masks[:, 0], ious[:, 0], None)


def _build(sizes: Sam2Sizes) -> SAM2Base:
    width = sizes.d_model
    channels = [sizes.embed_dim * 2**stage for stage in reversed(range(len(sizes.stages)))]
    trunk = Hiera(
        embed_dim=sizes.embed_dim,
        num_heads=sizes.num_heads,
        stages=sizes.stages,
        global_att_blocks=sizes.global_att_blocks,
        window_pos_embed_bkg_spatial_size=sizes.window_pos_embed_bkg_spatial_size,
        window_spec=sizes.window_spec,
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(width, normalize=True),
        d_model=width,
        backbone_channel_list=channels,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    # Images never use the memory modules; they are built because the released weights hold them and every load is strict.
    attention = {"rope_theta": 10000.0, "embedding_dim": width, "num_heads": 1, "downsample_rate": 1, "dropout": 0.1}
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=sizes.memory_feedforward,
        dropout=0.1,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(**attention),
        cross_attention=RoPEAttention(**attention, rope_k_repeat=True, kv_in_dim=sizes.memory_dim),
        d_model=width,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
    )
    memory_encoder = MemoryEncoder(
        out_dim=sizes.memory_dim,
        position_encoding=PositionEmbeddingSine(sizes.memory_dim, normalize=True),
        mask_downsampler=MaskDownSampler(embed_dim=width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=width, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True), num_layers=2),
        in_dim=width,
    )
    return SAM2Base(
        image_encoder=ImageEncoder(trunk, neck, scalp=1),
        memory_attention=MemoryAttention(width, pos_enc_at_input=True, layer=layer, num_layers=sizes.memory_layers),
        memory_encoder=memory_encoder,
        image_size=sizes.image_size,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=False,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        use_mlp_for_obj_ptr_proj=True,
    )
