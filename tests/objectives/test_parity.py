"""Losses and gradients of the official training code, in both forms (whole mask, sampled points)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ans.model.adapters import add_lora, select_trained
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives import mask
from tests.golden_case import GoldenCase

pytestmark = pytest.mark.usefixtures("as_recorded")


def close(ours: Tensor, golden: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours.flatten().float(), golden.flatten().float(), rtol=1e-4, atol=tolerance)


def test_whole_mask_losses(golden: GoldenCase) -> None:
    pred, target = golden["loss/pred"].flatten(1), golden["loss/target"].flatten(1)
    close(2.0 * mask.cross_entropy(pred, target).mean(), golden["loss/mask_full"])
    close(0.5 * mask.dice(pred, target).mean(), golden["loss/dice_full"])


def test_point_losses(golden: GoldenCase) -> None:
    points = golden["loss/point_coords"]
    pred, target = mask.sample(golden["loss/pred"], points), mask.sample(golden["loss/target"], points)
    close(pred, golden["loss/sampled_pred"])
    close(target, golden["loss/sampled_target"])
    close(2.0 * mask.cross_entropy(pred, target).mean(), golden["loss/mask_points"])
    close(0.5 * mask.dice(pred, target).mean(), golden["loss/dice_points"])


@pytest.fixture(scope="module")
def trained_model(golden: GoldenCase, golden_folder) -> Segmenter:
    """The model as it trains: base weights, LoRA unmerged with the checkpoint's matrices, embeddings and head trained."""
    model = Segmenter.from_pretrained(golden_folder)
    changed = model.config.keys.from_hf(golden.state("base_internvl_changed"), "model")
    with torch.no_grad():
        for name, tensor in changed.items():
            if name.rsplit(".", 2)[-2] in model.config.family.lora_targets:
                model.get_parameter(name).copy_(tensor)
    rank = golden.meta["cfg"]["dims"]["r"]
    add_lora(model, rank, 2 * rank, 0.0, generator_seed=0)
    trained = select_trained(model, ("lora", "proj", "fcs", "sam2_decoder", "embed_head"))
    state = golden.state("pth_train_state")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state[model.config.keys.trained_name(name)])
    return model.eval()


def joined(golden: GoldenCase, model: Segmenter) -> tuple[Features, Conversations]:
    images = [golden.image(case) for case in golden.meta["train"]["samples"]]
    batch = Conversations(
        golden["train/input_ids"],
        golden["train/labels"],
        golden["train/attention_mask"].long(),
        list(range(len(images))),
        [None] * len(images),
    )
    return model.encode_images(images), batch


def test_training_forward_and_gradients(golden: GoldenCase, trained_model: Segmenter) -> None:
    features, batch = joined(golden, trained_model)
    out = trained_model(features, batch)
    objects = golden["train/pred_masks"].shape[1]
    targets, order = [], []
    for i in range(len(golden.meta["train"]["samples"])):
        found = (out.seg_image == i).nonzero()[:, 0]
        repeat = [n % len(found) for n in range(objects)]
        order.append(found[repeat])
        truth = golden[f"train/gt_masks{i}"][:, None].float()
        targets.append(F.interpolate(truth, size=golden["train/pred_masks"].shape[-2:], mode="nearest")[repeat, 0])
    order_, target = torch.cat(order), torch.cat(targets)
    close(out.seg_embeds[order_][:, None], golden["train/language_embeddings"])
    logits = trained_model.masks(features, out.seg_image[order_], out.seg_embeds[order_]).low_res
    close(logits, golden["train/pred_masks"], 1e-3)
    loss_mask = 2.0 * mask.cross_entropy(logits.flatten(1), target.flatten(1)).mean()
    loss_dice = 0.5 * mask.dice(logits.flatten(1), target.flatten(1)).mean()
    language = out.language_loss / len(out.labels)
    close(loss_mask, golden["train/full/loss_mask"])
    close(loss_dice, golden["train/full/loss_dice"])
    close(language, golden["train/full/llm_loss"])

    points = golden["train/points/point_coords"]
    sampled, truth = mask.sample(logits, points), mask.sample(target, points)
    close(2.0 * mask.cross_entropy(sampled, truth).mean(), golden["train/points/loss_mask"])
    close(0.5 * mask.dice(sampled, truth).mean(), golden["train/points/loss_dice"])
    close(language, golden["train/points/llm_loss"])
    # the official rows count their padding too, which stands behind all that is read
    positions, there = trained_model.vlm.positions(batch.ids, batch.mask, [])[0], batch.mask.bool()
    assert torch.equal(positions[there], golden["train/position_ids"][there])

    trained = {name: p for name, p in trained_model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss_mask + loss_dice + language, list(trained.values()), allow_unused=True)
    norms = golden.meta["train"]["grad_norms"]
    seen = 0
    for name, gradient in zip(trained, gradients, strict=True):
        key = trained_model.config.keys.trained_name(name)
        assert gradient is not None, f"{name} is trained but no loss reaches it"
        assert float(gradient.norm()) == pytest.approx(norms[key], rel=1e-3, abs=1e-3), name
        if f"train/grad/{key}" in golden.tensors:
            close(gradient, golden[f"train/grad/{key}"], 1e-3)
            seen += 1
    assert seen == sum(key.startswith("train/grad/") for key in golden.tensors)
    frozen_heads = set(golden.meta["train"]["trainable_without_grad"])
    assert {trained_model.config.keys.trained_name(name) for name in trained} == set(norms) - frozen_heads


def test_uncertain_points_prefers_small_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.linspace(-4, 4, 32).expand(2, 32, 32)
    count = 64
    uniform = torch.rand(2, mask.point_candidates(count), 2, generator=generator)
    points = mask.uncertain_points(maps, uniform, count)
    assert points.shape == (2, count, 2)
    values = mask.sample(maps, points).abs()
    assert values[:, :48].max() < values[:, 48:].max()
    torch.testing.assert_close(points[:, 48:], uniform[:, -16:])


def test_soft_iou_by_hand() -> None:
    logits = torch.tensor([[100.0, 100.0, -100.0, -100.0]])
    assert float(mask.soft_iou(logits, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))) == pytest.approx(1 - (1 + 1) / (2 + 2 - 1 + 1))
