"""Models of sizes that no release has, against transformers' own: what is a number in a release must be read, not known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ans.checkpoints.assemble import assemble
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.family import Grid, Inputs
from ans.model.internlm2 import InternLM2
from ans.model.segmenter import Segmenter
from tests import small_releases
from tests.golden_case import GoldenCase

ROPE = {"rope_type": "default", "rope_theta": 5e5}
TEXT = small_releases.TEXT | {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 60, "num_hidden_layers": 2}
QWEN3: dict[str, Mapping[str, Any]] = {
    "narrow heads, cells of 3 x 3, single frames": {
        "text_config": TEXT | {"head_dim": 14, "rope_parameters": ROPE | {"mrope_section": [3, 2, 2]}, "num_hidden_layers": 4},
        "vision_config": {
            "depth": 4, "hidden_size": 36, "intermediate_size": 50, "num_heads": 3, "out_hidden_size": 60, "patch_size": 6,
            "spatial_merge_size": 3, "temporal_patch_size": 1, "num_position_embeddings": 25, "deepstack_visual_indexes": [3, 0, 1],
        },
    },
    "one deep level, patches of 10, three frames": {
        "text_config": TEXT | {"head_dim": 24, "rope_parameters": ROPE | {"mrope_section": [2, 4, 6]}},
        "vision_config": {
            "depth": 2, "hidden_size": 40, "intermediate_size": 30, "num_heads": 5, "out_hidden_size": 60, "patch_size": 10,
            "spatial_merge_size": 2, "temporal_patch_size": 3, "num_position_embeddings": 49, "deepstack_visual_indexes": [1],
        },
    },
}  # fmt: skip
QWEN25: dict[str, Mapping[str, Any]] = {
    "windows of 3 x 3 cells, all blocks but the first": {
        "text_config": TEXT | {"hidden_size": 72, "rope_parameters": ROPE | {"mrope_section": [1, 2, 3]}},
        "vision_config": {
            "depth": 3, "hidden_size": 36, "intermediate_size": 50, "num_heads": 3, "out_hidden_size": 72, "patch_size": 6,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 36, "fullatt_block_indexes": [0],
        },
    },
    "cells of 3 x 3, windows of 2 x 2": {
        "text_config": TEXT | {"hidden_size": 48, "num_key_value_heads": 2, "rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
        "vision_config": {
            "depth": 2, "hidden_size": 24, "intermediate_size": 50, "num_heads": 2, "out_hidden_size": 48, "patch_size": 4,
            "spatial_merge_size": 3, "temporal_patch_size": 1, "window_size": 24, "fullatt_block_indexes": [1],
        },
    },
}  # fmt: skip
KINDS: dict[str, tuple[Any, Any, dict[str, Mapping[str, Any]]]] = {
    "qwen3": (Qwen3VLConfig, Qwen3VLForConditionalGeneration, QWEN3),
    "qwen25": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, QWEN25),
}
LIMITS = {"min_pixels": 40 * 60, "max_pixels": 90 * 110}


def noise(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height * width).integers(0, 256, (height // 7 + 2, width // 5 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def made(theirs: PreTrainedModel, folder: Path) -> Segmenter:
    """A base of a release in small."""
    small_releases.save_qwen(theirs, folder / "released")
    small_releases.edit(folder / "released" / "config.json", lambda values: values.update(LIMITS))
    small_releases.add_sam2_section(folder / "released")
    assemble(folder / "released", small_releases.sam2(folder / "sam2.pt"), folder / "base")
    return Segmenter.from_pretrained(folder / "base")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, _, cases) in KINDS.items() for name in cases])
@pytest.mark.second
def test_qwen(kind: str, name: str, tmp_path: Path) -> None:
    """Grids, patches, positions and logits of images in several shapes."""
    torch.manual_seed(5)
    config, model, cases = KINDS[kind]
    theirs = model(config(**cases[name], **small_releases.IDS, tie_word_embeddings=False))
    ours = made(theirs.eval(), tmp_path)
    family, vision = ours.config.family, theirs.config.vision_config
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": LIMITS["min_pixels"], "longest_edge": LIMITS["max_pixels"]}, image_mean=list(family.mean),
        image_std=list(family.std),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    for height, width in ((90, 61), (47, 140), (300, 210), (25, 33), (144, 45)):
        seen = processor(noise(height, width), return_tensors="pt")
        rows, columns = (size // vision.spatial_merge_size for size in seen["image_grid_thw"][0, 1:].tolist())
        assert family.grid(height, width) == Grid(1, rows, columns)
        image = noise(rows * family.cell, columns * family.cell)  # whose size is kept: resizing is not what is compared
        seen, pixels = processor(image, return_tensors="pt"), family.pixels(image)
        frames = vision.temporal_patch_size
        doubled = pixels.values.unflatten(1, (3, 1, -1)).expand(-1, -1, frames, -1).flatten(1)
        torch.testing.assert_close(doubled, seen["pixel_values"], rtol=0, atol=1e-5)

        text = torch.randint(0, 400, (1, 9), generator=generator)
        begin = torch.tensor([[small_releases.IDS["vision_start_token_id"]]])
        ids = torch.cat([text[:, :3], begin, torch.full((1, pixels.grid.tokens), ours.image_token), text[:, 3:]], 1)
        mask = torch.ones_like(ids)
        (features,) = ours.vlm.encode(pixels.values, [pixels.grid])
        positions = ours.vlm.positions(ids, mask, [pixels.grid])
        inputs = ours.inputs(ids, mask, positions, [[level.flatten(0, 1) for level in features.levels]])
        kinds = (ids == ours.image_token).int()
        with torch.no_grad():
            logits = ours.vlm.language_model.lm_head(ours.vlm.run(inputs).normed)
            whole = theirs(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=doubled,
                image_grid_thw=seen["image_grid_thw"],
                mm_token_type_ids=kinds,
            ).logits
        rotary, _ = theirs.model.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=seen["image_grid_thw"], attention_mask=mask
        )
        assert torch.equal(positions, rotary)
        assert whole.std() > 0.1
        torch.testing.assert_close(logits[..., :400], whole[..., :400], rtol=0, atol=1e-3)
        (found,) = ours.segment_given([image], [["the left cup"]], "Sure, [SEG].")[0]
        assert found.mask.shape == (image.height, image.width)


def test_internvl(tmp_path: Path) -> None:
    """Five heads, patches of 10, tiles of 8 x 8 patches, and pixel shuffle by 4."""
    torch.manual_seed(6)
    golden = GoldenCase()
    values = golden.config()
    tiny = ModelConfig.from_folder(small_releases.TINY)
    values["vision_config"] = values["vision_config"] | {
        "hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 41, "num_hidden_layers": 2, "patch_size": 10,
        "image_size": 80,
    }  # fmt: skip
    values["llm_config"] = values["llm_config"] | {
        "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 44, "num_hidden_layers": 2,
        "rope_theta": 5e5,
    }  # fmt: skip
    values |= {
        "force_image_size": 80,
        "downsample_ratio": 0.25,
        "max_dynamic_patch": 5,
        "sam2_config": tiny.values["sam2_config"],
    }
    read = ModelConfig.from_dict(values)
    vision, language, token = read.family.vision, read.language, golden.meta["tokens"]["<IMG_CONTEXT>"]
    config = InternVLConfig(
        vision_config=vision.to_dict() | {"use_absolute_position_embeddings": True}, text_config=language.to_dict(),
        image_token_id=token, image_seq_length=4, downsample_ratio=0.25, vision_feature_select_strategy="default",
        vision_feature_layer=-1, projector_hidden_act="gelu", tie_word_embeddings=False,
    )  # fmt: skip
    theirs = InternVLForConditionalGeneration(config).eval()
    small_releases.drawn(theirs)
    golden.write_tokenizer(tmp_path)
    model = Segmenter(read, PreTrainedTokenizerFast.from_pretrained(tmp_path)).eval()
    hf = read.keys.to_hf(theirs.state_dict(), "transformers")
    missing, unexpected = model.load_state_dict(read.keys.from_hf(hf, "model"), strict=False)
    assert not unexpected and all(name.startswith(("sam.", "text_hidden_fcs.")) for name in missing)
    for height, width in ((80, 240), (200, 100)):
        image = noise(height, width)
        pixels = read.family.pixels(image)
        assert pixels.grid == read.family.grid(height, width) and pixels.grid.tiles > 1 and pixels.grid.region == (2, 2)
        text = model.template.image_string(pixels.grid.tokens) + model.template.segment_question("the cup")
        ids = torch.tensor([prompts.encode_prompt(model.tokenizer, model.template, text)])
        mask = torch.ones_like(ids)
        (features,) = model.vlm.encode(pixels.values, [pixels.grid])
        tokens = model.vlm.project(features.tokens).flatten(0, 1)
        inputs = Inputs(
            model.vlm.embed(ids, tokens, model.image_token), mask, model.vlm.positions(ids, mask, [pixels.grid]), ids == token
        )
        with torch.no_grad():
            logits = model.vlm.language_model.lm_head(model.vlm.run(inputs).normed)
            whole = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels.values).logits
        assert whole.std() > 0.1
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-3)


def test_internlm2() -> None:
    """Seven heads for each key, against Llama with the fused layer taken apart by loops."""
    torch.manual_seed(7)
    heads, groups, width = 14, 2, 6
    config = LlamaConfig(
        hidden_size=heads * width, num_attention_heads=heads, num_key_value_heads=groups, intermediate_size=50, num_hidden_layers=3,
        vocab_size=70, rope_parameters=ROPE, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    ours = InternLM2(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    renamed = {"tok_embeddings": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    renamed |= {"attention.wo": "self_attn.o_proj", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj", "feed_forward": "mlp"}
    state: dict[str, Tensor] = {}
    for name, tensor in ours.state_dict().items():
        if name.endswith("wqkv.weight"):
            parts: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
            for number, head in enumerate(tensor.split(width)):
                place = number % (heads // groups + 2) - heads // groups
                parts["q" if place < 0 else "kv"[place]].append(head)
            for part, rows in parts.items():
                state[name.replace("attention.wqkv", f"self_attn.{part}_proj")] = torch.cat(rows)
        else:
            for before, after in renamed.items():
                name = name.replace(before, after)
            state[name] = tensor
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(state)
    ids = torch.randint(0, 70, (2, 17))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        embeds = ours.get_input_embeddings()(ids)
        attention = Inputs(embeds, mask, places[None], torch.zeros_like(ids, dtype=torch.bool)).attention()
        states = ours.model(embeds, {"full_attention": attention}, places).last_hidden_state
        logits, whole = ours.lm_head(states), theirs(ids, attention_mask=mask, position_ids=places).logits
    there = mask.bool()
    torch.testing.assert_close(logits[there], whole[there], rtol=1e-4, atol=1e-4)
    assert whole.std() > 0.1
