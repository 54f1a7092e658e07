"""SAM2.1, and transformers' own SAM2, against the `sam2` package."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ans.model.decoders.sam2 import MaskDecoder, Network
from tests.native_sam2 import native

TINY = json.loads((Path(__file__).parents[2] / "weights" / "tiny" / "config.json").read_text(encoding="utf-8"))["sam2_config"]
OTHER = {
    "image_size": 192, "embed_dim": 12, "num_heads": 2, "stages": (1, 2, 3, 1), "global_att_blocks": (4,), "d_model": 64,
    "window_pos_embed_bkg_spatial_size": (5, 5), "window_spec": (4, 4, 6, 3), "memory_dim": 8, "memory_feedforward": 48,
    "memory_layers": 2,
}  # fmt: skip
SIZES = {"tiny": MaskDecoder.read(TINY), "other": MaskDecoder.read(OTHER)}
VALUE, LOGIT = 1e-4, 1e-3


def network(sizes: MaskDecoder) -> Network:
    """Random weights, of which none is so small that it does not matter."""
    torch.manual_seed(2)
    made = sizes.build().eval()
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1 and "norm" in name), 1.2 / parameter[0].numel() ** 0.5)
    for module in made.modules():
        if isinstance(module, torch.nn.Embedding):  # tokens beside which the prompt vectors are neither large nor small
            torch.nn.init.normal_(module.weight)
    made.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data += 10  # masks without an object are not compared
    return made


def given(sizes: MaskDecoder) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of two images, three prompt vectors, and which image each is on."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, sizes.image_size, sizes.image_size, generator=generator)
    return pixels, torch.randn(3, sizes.width, generator=generator), torch.tensor([0, 1, 1])


# ------------------------------------------------------------------------------------------------------------------- SAM2.1


def packages_own(sizes: MaskDecoder) -> SAM2Base:
    """The package's model by its own file for SAM2.1, with sizes in the place of the released ones."""
    path = Path(sam2.__file__).parent / "configs" / "sam2.1" / "sam2.1_hiera_l.yaml"
    values: Any = OmegaConf.to_container(OmegaConf.load(path).model)
    width, channels = sizes.d_model, [sizes.embed_dim * 2**stage for stage in reversed(range(4))]
    trunk = ("embed_dim", "num_heads", "stages", "global_att_blocks", "window_pos_embed_bkg_spatial_size", "window_spec")
    values["image_size"] = sizes.image_size
    values["image_encoder"]["trunk"] |= {key: getattr(sizes, key) for key in trunk}
    values["image_encoder"]["neck"] |= {"d_model": width, "backbone_channel_list": channels}
    values["image_encoder"]["neck"]["position_encoding"]["num_pos_feats"] = width
    attention: dict[str, Any] = values["memory_attention"]
    attention |= {"d_model": width, "num_layers": sizes.memory_layers}
    attention["layer"] |= {"d_model": width, "dim_feedforward": sizes.memory_feedforward}
    for name in ("self_attention", "cross_attention"):
        attention["layer"][name]["embedding_dim"] = width
    attention["layer"]["cross_attention"]["kv_in_dim"] = sizes.memory_dim
    encoder: dict[str, Any] = values["memory_encoder"]
    encoder["out_dim"] = encoder["position_encoding"]["num_pos_feats"] = sizes.memory_dim
    encoder |= {"in_dim": width}
    encoder["mask_downsampler"]["embed_dim"] = encoder["fuser"]["layer"]["dim"] = width
    return instantiate(values).eval()


@contextmanager
def prompted(model: SAM2Base, vectors: Tensor) -> Iterator[None]:
    """Meanwhile the vectors come behind the points of the prompts, as Sa2VA has it."""

    def behind(module: torch.nn.Module, arguments: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.cat([output[0], vectors[:, None]], 1), output[1]

    handle = model.sam_prompt_encoder.register_forward_hook(behind)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", SIZES)
def test_sam21_is_the_packages_own(name: str) -> None:
    sizes = replace(SIZES[name], version="2.1")
    ours, theirs = network(sizes), packages_own(sizes)
    theirs.load_state_dict({key.removeprefix("model."): tensor for key, tensor in ours.state_dict().items()})
    pixels, prompts, where = given(sizes)
    with torch.no_grad():
        found = ours.decode(ours.project(ours.encode(pixels)), where, prompts)
        for number, image in enumerate(where.tolist()):
            seen = theirs.forward_image(pixels[image][None])
            with prompted(theirs, prompts[number][None]):
                _, features, places, cells = theirs._prepare_backbone_features(seen)
                out = theirs.track_step(
                    frame_idx=0, is_init_cond_frame=True, current_vision_feats=features, current_vision_pos_embeds=places,
                    feat_sizes=cells, point_inputs=None, mask_inputs=None, output_dict={}, num_frames=1, run_mem_encoder=False,
                )  # fmt: skip
            low_res, score = out["pred_masks"][0, 0], out["object_score_logits"][0]
            torch.testing.assert_close(found.object_score[number], score, rtol=0, atol=VALUE)
            assert score > 0, "else the package says that there is nothing, which Sa2VA does not"
            torch.testing.assert_close(found.low_res[number], low_res, rtol=0, atol=LOGIT)
            whole = sizes.upscale(found.low_res[number][None], (sizes.image_size, sizes.image_size))[0]
            torch.testing.assert_close(whole, out["pred_masks_high_res"][0, 0], rtol=0, atol=LOGIT)
    assert found.low_res.std() > 0.5


def test_the_two_versions_differ_in_memory_alone() -> None:
    """Two tensors more, the same numbers on an image."""
    old, new = network(SIZES["tiny"]), network(replace(SIZES["tiny"], version="2.1"))
    assert old.propagations == ("official",) and new.propagations == (), "SAM2.1's memory is another"
    added = new.state_dict().keys() - old.state_dict().keys()
    assert added == {"model.no_obj_embed_spatial", "model.obj_ptr_tpos_proj.weight", "model.obj_ptr_tpos_proj.bias"}
    new.load_state_dict(old.state_dict(), strict=False)
    pixels, prompts, where = given(SIZES["tiny"])
    with torch.no_grad():
        one, other = (made.decode(made.project(made.encode(pixels)), where, prompts) for made in (old, new))
    assert torch.equal(one.low_res, other.low_res)
    with pytest.raises(ValueError, match=r"sam2_config.version: '2.2' is unknown; there are 2.0, 2.1"):
        MaskDecoder.read(TINY | {"version": "2.2"})


# ------------------------------------------------------------------------------------------------------ transformers' own SAM2


@pytest.mark.parametrize("name", SIZES)
def test_transformers_sam2_gives_the_same(name: str) -> None:
    sizes = SIZES[name]
    ours = network(sizes)
    theirs = native(ours, sizes)
    pixels, prompts, where = given(sizes)
    with torch.no_grad():
        levels = ours.encode(pixels)
        seen = theirs.vision_encoder(pixels)
        for mine, its in zip(levels, seen.fpn_hidden_states, strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=VALUE)
        features = ours.project(levels)
        embeddings = theirs.get_image_embeddings(pixels)
        for mine, its in zip(features, embeddings, strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=VALUE)
        places = theirs.get_image_wide_positional_embeddings()
        torch.testing.assert_close(ours.model.sam_prompt_encoder.get_dense_pe(), places, rtol=0, atol=VALUE)
        found = ours.decode(features, where, prompts)
        sparse, dense = theirs.prompt_encoder(torch.zeros(3, 1, 1, 2), -torch.ones(3, 1, 1, dtype=torch.int), None, None)
        fine, middle, coarse = (level[where] for level in embeddings)
        masks, ious, _, score = theirs.mask_decoder(
            image_embeddings=coarse, image_positional_embeddings=places.expand(3, -1, -1, -1),
            sparse_prompt_embeddings=torch.cat([sparse, prompts[:, None, None]], 2), dense_prompt_embeddings=dense,
            multimask_output=True, high_resolution_features=[fine, middle],
        )  # fmt: skip
    torch.testing.assert_close(found.candidates, masks[:, 0], rtol=0, atol=LOGIT)
    torch.testing.assert_close(found.ious, ious[:, 0], rtol=0, atol=VALUE)
    torch.testing.assert_close(found.object_score, score[:, 0], rtol=0, atol=VALUE)
    assert found.candidates.std() > 0.5 and found.ious.std() > 0.01
