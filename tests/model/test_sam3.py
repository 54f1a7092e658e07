"""SAM 3's tracker against transformers' own (`Sam3TrackerModel`), and its official names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam3TrackerConfig, Sam3TrackerModel

from ans.model.config import ModelConfig
from ans.model.decoders.sam3 import NOTHING, MaskDecoder, Network
from ans.model.keys import Keys
from ans.model.segmenter import Segmenter
from tests.golden_case import GoldenSet
from tests.native_sam2 import renamed

SMALL = {
    "image_size": 168, "d_model": 64, "memory_dim": 8, "memory_feedforward": 48, "memory_layers": 2,
    "vision": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14, "window_size": 5,
        "global_attn_indexes": [1], "pretrain_image_size": 56,
    },
}  # fmt: skip
VALUE, LOGIT = 1e-4, 1e-3
HF = "grounding_encoder.sam2_model."


def network(score: float = 10.0) -> Network:
    """Random weights, of which none is so small that it does not matter. `score`: what is added to the object score."""
    torch.manual_seed(2)
    made = MaskDecoder.read(SMALL).build().eval()
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1 and "norm" in name), 1.2 / parameter[0].numel() ** 0.5)
    for module in made.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    made.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data += score
    return made


def native(made: Network) -> Sam3TrackerModel:
    """transformers' model, loaded strictly with every tensor that images need. Of the pyramid's four levels the tracker uses three;
    with four, transformers adds `no_memory_embedding` to the last of them, which nothing reads."""
    sizes, width = MaskDecoder.read(SMALL), {"hidden_size": SMALL["d_model"]}
    config = Sam3TrackerConfig(
        vision_config=sizes.encoder.to_dict() | {"scale_factors": [4.0, 2.0, 1.0]},
        prompt_encoder_config=width | {"image_size": sizes.image_size, "patch_size": sizes.stride},
        mask_decoder_config=width,
    )
    config.vision_config.backbone_feature_sizes = [[sizes.side // 2**level] * 2 for level in range(3)]
    model = Sam3TrackerModel(config).eval()
    unused = ("class_position", "image_encoder.neck.fpn_layers.3.")
    state = {
        name.removeprefix("model."): of for name, of in made.state_dict().items() if not any(part in name for part in unused)
    }
    model.load_state_dict(renamed(state))
    return model


def given() -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of two images, three prompt vectors, and which image each is on."""
    generator = torch.Generator().manual_seed(5)
    side, width = SMALL["image_size"], SMALL["d_model"]
    pixels = torch.randn(2, 3, side, side, generator=generator)
    return pixels, torch.randn(3, width, generator=generator), torch.tensor([0, 1, 1])


def close(ours: Tensor, theirs: Tensor, tolerance: float = VALUE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@torch.no_grad()
def test_transformers_own_tracker_gives_the_same() -> None:
    ours = network()
    theirs, (pixels, prompts, where) = native(ours), given()
    features, embeddings = ours.project(ours.encode(pixels)), theirs.get_image_embeddings(pixels)
    for mine, its in zip(features, embeddings[:3], strict=True):
        close(mine, its)
    found = ours.decode(features, where, prompts)
    sparse, dense = theirs.prompt_encoder(torch.zeros(3, 1, 1, 2), -torch.ones(3, 1, 1, dtype=torch.int), None, None)
    fine, middle, coarse = (level[where] for level in embeddings[:3])
    masks, ious, _, score = theirs.mask_decoder(
        image_embeddings=coarse, image_positional_embeddings=theirs.get_image_wide_positional_embeddings().expand(3, -1, -1, -1),
        sparse_prompt_embeddings=torch.cat([sparse, prompts[:, None, None]], 2), dense_prompt_embeddings=dense,
        multimask_output=True, high_resolution_features=[fine, middle],
    )  # fmt: skip
    close(found.candidates, masks[:, 0], LOGIT)
    close(found.ious, ious[:, 0])
    close(found.object_score, score[:, 0])
    assert found.candidates.std() > 0.5 and found.ious.std() > 0.01 and float(score.min()) > 0
    # points and boxes, whose coordinates are pixels there
    points, labels = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([[1, 0], [1, 1], [0, 1]])
    side = SMALL["image_size"]
    for index in range(3):
        for count in (1, 2):
            at, on = points[index, :count], labels[index, :count]
            out = theirs(
                pixels[where[index]][None], input_points=side * at[None, None], input_labels=on[None, None],
                multimask_output=count == 1,
            )  # fmt: skip
            mine = ours.decode_at(features, where[index : index + 1], at[None], on[None].int(), None)
            close(mine.candidates, out.pred_masks[:, 0], LOGIT)


@torch.no_grad()
def test_what_is_not_there_has_no_mask() -> None:
    """By the score, as the release has it and Sa2VA's SAM2 has not."""
    there, absent, (pixels, prompts, where) = network(), network(-10.0), given()
    found, nothing = (made.decode(made.project(made.encode(pixels)), where, prompts) for made in (there, absent))
    assert (nothing.object_score < 0).all() and (nothing.low_res == NOTHING).all() and (nothing.candidates == NOTHING).all()
    assert (found.object_score > 0).all() and (found.low_res > NOTHING).all()


def test_official_names() -> None:
    """As the `sam3` package has them; what transformers takes apart is one there."""
    state = {f"sam.{name}": tensor for name, tensor in network().state_dict().items()}
    keys = Keys(MaskDecoder.keys)
    official = {name.removeprefix(HF): tuple(tensor.shape) for name, tensor in keys.to_hf(state, "model").items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in keys.from_hf(keys.to_hf(state, "model"), "model").items())
    vision = "backbone.vision_backbone."
    assert official.items() >= {
        f"{vision}trunk.pos_embed": (1, 17, 32), f"{vision}trunk.patch_embed.proj.weight": (32, 3, 14, 14),
        f"{vision}trunk.ln_pre.weight": (32,), f"{vision}trunk.blocks.2.attn.qkv.weight": (96, 32),
        f"{vision}trunk.blocks.0.attn.proj.bias": (32,), f"{vision}trunk.blocks.0.norm1.weight": (32,),
        f"{vision}trunk.blocks.0.mlp.fc1.weight": (48, 32), f"{vision}convs.3.conv_3x3.weight": (64, 64, 3, 3),
        f"{vision}convs.1.dconv_2x2.bias": (16,), f"{vision}sam2_convs.0.dconv_2x2_0.weight": (32, 16, 2, 2),
        f"{vision}sam2_convs.0.dconv_2x2_1.weight": (16, 8, 2, 2), f"{vision}sam2_convs.2.conv_1x1.weight": (64, 32, 1, 1),
        "sam_mask_decoder.transformer.layers.1.mlp.lin2.weight": (64, 2048), "sam_mask_decoder.conv_s0.weight": (8, 64, 1, 1),
        "maskmem_backbone.fuser.layers.0.g_weight": (64,), "maskmem_backbone.out_proj.weight": (8, 64, 1, 1),
        "transformer.encoder.layers.1.cross_attn_image.k_proj.weight": (64, 8), "transformer.encoder.norm.weight": (64,),
        "no_mem_embed": (1, 1, 64), "no_obj_embed_spatial": (1, 8), "obj_ptr_tpos_proj.weight": (8, 64),
    }.items()  # fmt: skip
    assert not [
        name for name in official if "image_encoder" in name or "memory_" in name or "_proj.weight" in name and "trunk" in name
    ]


def test_the_released_file_has_two_prefixes() -> None:
    """SAM 3's own checkpoint: the tracker's heads in one place, the shared image encoder in the other."""
    keys = Keys(MaskDecoder.keys)
    for there, hf in (
        ("tracker.sam_mask_decoder.conv_s0.bias", "sam_mask_decoder.conv_s0.bias"),
        ("tracker.maskmem_backbone.fuser.layers.1.gamma", "maskmem_backbone.fuser.layers.1.g_weight"),
        (
            "detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.bias",
            "backbone.vision_backbone.trunk.blocks.0.attn.qkv.bias",
        ),
    ):
        assert keys.to_hf_name(there, "sam3") == HF + hf and keys.from_hf_names(HF + hf, "sam3") == [there]


def test_a_model_with_it(tmp_path: Path) -> None:
    """Qwen3-VL with this decoder: found by its tensors, as the official file says nothing; loaded, saved, and the same again."""
    golden = GoldenSet("sa2va_qwen3vl")
    folder = golden.write_model(tmp_path / "model")
    state, width = load_file(folder / "model.safetensors"), golden.config["text_config"]["hidden_size"]
    kept = {name: tensor for name, tensor in state.items() if not name.startswith((HF, "text_hidden_fcs.2."))}
    kept |= {"text_hidden_fcs.2.weight": torch.randn(64, width), "text_hidden_fcs.2.bias": torch.zeros(64)}
    tracker = Keys(MaskDecoder.keys).to_hf({f"sam.{name}": tensor for name, tensor in network().state_dict().items()}, "model")
    save_file({name: tensor.contiguous() for name, tensor in (kept | tracker).items()}, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del values["sam2_config"]
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    assert (
        isinstance(ModelConfig.from_folder(folder).decoder, MaskDecoder)
        and ModelConfig.from_folder(folder).decoder.image_size == 1008
    )
    (folder / "config.json").write_text(json.dumps(values | {"sam3_config": SMALL}), encoding="utf-8")
    model = Segmenter.from_pretrained(folder)
    images = [golden.image(case) for case in sorted(golden.meta["cases"])]
    (first,), (second,) = model.segment_given(images, [["cup"], ["dog"]], "It is [SEG].")
    assert first.mask.shape == images[0].size[::-1] and first.mask.any() and not first.mask.all()
    model.save_pretrained(tmp_path / "again")
    again = {name: tensor for file in (tmp_path / "again").glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert again.keys() == (kept | tracker).keys()
    for name, tensor in (kept | tracker).items():
        assert torch.equal(again[name].float(), tensor.float()), name
    loaded = Segmenter.from_pretrained(tmp_path / "again")
    assert (loaded.segment_given(images, [["cup"], ["dog"]], "It is [SEG].")[0][0].mask == first.mask).all()
    with pytest.raises(ValueError, match="only a mask decoder with a memory"):
        model.load_original_decoder(folder)


PARTS = (
    "image_encoder.trunk.layers.1.attention.q_proj.weight", "image_encoder.neck.fpn_layers.1.proj1.weight",
    "sam_mask_decoder.transformer.layers.0.mlp.layers.1.weight", "no_mem_embed",
)  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.second
def test_a_perturbed_weight_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = native(network())
    monkeypatch.setattr("tests.model.test_sam3.native", lambda made: untouched)
    changed = network()
    changed.model.get_parameter(name).data *= 1.2
    monkeypatch.setattr("tests.model.test_sam3.network", lambda: changed)
    with pytest.raises(AssertionError):
        test_transformers_own_tracker_gives_the_same()
