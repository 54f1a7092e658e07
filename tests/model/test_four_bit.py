"""Frozen parts in NF4, on the CPU: what is held how, that the answers stay near, and that LoRA on top of it learns."""

import pytest
import torch
from torch import nn

from ans.model.adapters import add_lora, add_seg_row, select_trained
from ans.model.four_bit import hold_in_four_bits, numbers
from ans.model.segmenter import Segmenter
from tests import lisa_case
from tests.checkpoints.test_lisa import answer

bitsandbytes = pytest.importorskip("bitsandbytes", reason="an extra: pip install bitsandbytes")


def quantised(module: nn.Module) -> set[str]:
    return {name for name, layer in module.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return lisa_case.write_model(tmp_path_factory.mktemp("lisa"))


def test_values_are_bitsandbytes_own() -> None:
    """The layer computes with the values that bitsandbytes' quantise and dequantise give, doubly quantised, bias kept."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 64))
    weight, bias, x = plain[0].weight.detach().clone(), plain[0].bias.detach().clone(), torch.randn(3, 64)
    hold_in_four_bits(plain, torch.device("cpu"))
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    expected = x @ bitsandbytes.functional.dequantize_4bit(packed, state).T + bias
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
    assert plain[0].weight.dtype == torch.uint8 and plain[0].weight.quant_state.nested
    assert numbers(plain[0].weight) == 64 * 64 == 2 * plain[0].weight.numel() and numbers(plain[0].bias) == 64


def test_parts_are_chosen(folder) -> None:
    plain = answer(Segmenter.from_pretrained(folder))
    held = {part: quantised(Segmenter.from_pretrained(folder, four_bit=(part,))) for part in ("language", "vision", "sam")}
    assert len(held["language"]) == 2 * 7 and all(name.startswith("vlm.language_model.model.") for name in held["language"])
    assert len(held["vision"]) == 3 * 6 and all(name.startswith("vlm.vision_tower.") for name in held["vision"])
    assert len(held["sam"]) == 2 * 4 and all(name.startswith("sam.sam.vision_encoder.") for name in held["sam"])
    everything = Segmenter.from_pretrained(folder, four_bit=("language", "vision", "sam"))
    assert quantised(everything) == set.union(*held.values()), "never the output layer, the projector or the mask decoder"
    error = (answer(everything)[0] - plain[0]).norm() / plain[0].norm()
    assert 1e-4 < error < 0.5


@pytest.mark.second
def test_lora_learns_on_four_bits(folder) -> None:
    model = Segmenter.from_pretrained(folder, four_bit=("language", "vision", "sam"))
    add_lora(model, 4, 8.0, 0.0, 0, ("q_proj", "v_proj"))
    add_seg_row(model)
    trained = select_trained(model, ("lora", "seg_row", "fcs", "sam2_decoder"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in trained}
    assert any(".base_layer.weight.absmax" in name for name in before)
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-2)
    losses = []
    for _ in range(25):
        ids = torch.tensor([[1, 7, 9, model.seg_token, 2]])
        mask = torch.ones_like(ids)
        hidden, _ = model.vlm.run(model.inputs(ids, mask, model.vlm.positions(ids, mask, []), [[torch.zeros(0, 32)]]))
        loss = nn.functional.cross_entropy(model.vlm.language_model.lm_head(hidden)[0, :-1], ids[0, 1:])
        masks = model.sam.decode((torch.ones(1, 16, 4, 4),), torch.tensor([0]), model.seg_embed(hidden[:, 3])).low_res
        loss = loss + nn.functional.binary_cross_entropy_with_logits(masks, torch.ones_like(masks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in trained.items() if ".lora_B." in name)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
