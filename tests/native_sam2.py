"""transformers' own SAM2 with the weights of ours."""

import re
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2Config, Sam2Model

from ans.model.decoders.sam2 import MaskDecoder, Network

_PARTS = {
    "image_encoder.trunk.": "vision_encoder.backbone.",
    "image_encoder.neck.": "vision_encoder.neck.",
    "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "prompt_encoder.shared_embedding.positional_embedding",
    "sam_prompt_encoder.mask_downscaling.": "prompt_encoder.mask_embed.",
    "sam_prompt_encoder.": "prompt_encoder.",
    "sam_mask_decoder.": "mask_decoder.",
    "no_mem_embed": "no_memory_embedding",
}
_INSIDE = (
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.conv\.(weight|bias)$", r".\1"),
    (r"\.norm(?=\d|_final)", ".layer_norm"),
    (r"\.out_proj\.", ".o_proj."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"mask_embed\.0\.", "mask_embed.conv1."),
    (r"mask_embed\.1\.", "mask_embed.layer_norm1."),
    (r"mask_embed\.3\.", "mask_embed.conv2."),
    (r"mask_embed\.4\.", "mask_embed.layer_norm2."),
    (r"mask_embed\.6\.", "mask_embed.conv3."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"(mlps\.\d|_head)\.layers\.0\.", r"\1.proj_in."),  # these have three layers
    (r"(mlps\.\d|_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d|_head)\.layers\.2\.", r"\1.proj_out."),
)


def native(network: Network, sizes: MaskDecoder) -> Sam2Model:
    """`Sam2Model`, loaded strictly with every tensor of `network` that images need."""
    model = Sam2Model(_config(sizes)).eval()
    model.load_state_dict(renamed({name.removeprefix("model."): tensor for name, tensor in network.state_dict().items()}))
    return model


def _config(sizes: MaskDecoder) -> Sam2Config:
    widths = [sizes.embed_dim * 2**stage for stage in range(len(sizes.stages))]
    cells = sizes.side
    backbone: dict[str, Any] = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": sizes.embed_dim,
        "num_attention_heads": sizes.num_heads,
        "image_size": [sizes.image_size] * 2,
        "window_positional_embedding_background_size": list(sizes.window_pos_embed_bkg_spatial_size),
        "window_size_per_stage": list(sizes.window_spec),
        "blocks_per_stage": list(sizes.stages),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [sizes.num_heads * 2**stage for stage in range(len(sizes.stages))],
        "global_attention_blocks": list(sizes.global_att_blocks),
    }
    vision: dict[str, Any] = {
        "backbone_config": backbone,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[cells // 2**level] * 2 for level in range(3)],
        "fpn_hidden_size": sizes.d_model,
    }
    return Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": sizes.d_model, "image_size": sizes.image_size},
        mask_decoder_config={"hidden_size": sizes.d_model},
    )


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """sam2's names -> transformers'; what belongs to the memory is left out."""
    points = [state.pop(name) for name in sorted(state) if name.startswith("sam_prompt_encoder.point_embeddings.")]
    found = {"prompt_encoder.point_embed.weight": torch.cat(points)}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in _PARTS if name.startswith(prefix)), None)
        if prefix is not None:
            name = _PARTS[prefix] + name.removeprefix(prefix)
            for theirs, ours in _INSIDE:
                name = re.sub(theirs, ours, name)
            found[name] = tensor
    found["shared_image_embedding.positional_embedding"] = found["prompt_encoder.shared_embedding.positional_embedding"]
    return found
