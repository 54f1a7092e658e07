"""Both loops on the tiny model: what reaches what, and that nothing else does."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from ans.model import tokens
from ans.objectives import mask
from ans.objectives.captions import corrupt
from ans.objectives.gumbel import _SoftGradient
from ans.objectives.passes import Batch
from ans.tasks import loop1
from ans.tasks.base import Example, Losses
from ans.tasks.loop1 import MaskSource
from ans.tasks.loop2 import region_shares
from tests.task_case import TaskCase

ORIGINAL = {"rescored": "all", "denoising": 0.0}


def run_loop1(
    case: TaskCase, batch: Batch | None = None, train: dict[str, Any] | None = None, **changes: Any
) -> tuple[Losses, Example]:
    task = case.task("loop1", train, **(ORIGINAL | changes))
    losses = case.losses(task, batch or task.batch(range(4)))
    return losses, losses.example


def drawn(case: TaskCase) -> Batch:
    """The batch that `run_loop1` takes."""
    return case.task("loop1").batch(range(4))


def soft_forward(logits: Tensor, table: Tensor, noise: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `straight_through`, but its value is the soft mean: a smooth function, whose differences can be taken."""
    values, index = logits.float().topk(noise.shape[-1])
    soft = ((values + noise) / tau).softmax(-1)
    mean = (soft[..., None] * table[index]).sum(1).detach()
    kept = torch.ones(len(logits))
    return mean + _SoftGradient.apply(logits, table.detach(), index, noise, tau), soft.argmax(-1), kept


def test_the_mask_teaches_the_first_pass(case: TaskCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """d(mask loss) / d(tensors as the first pass alone uses them), against central differences along the gradient."""
    first_pass = {
        name: p.detach().clone().requires_grad_() for name, p in case.trained.items() if "lora" in name or "mlp1" in name
    }
    reread = loop1.Task.reread

    def with_own_tensors(task, model, *arguments):
        with _reparametrize_module(model, first_pass):
            return reread(task, model, *arguments)

    monkeypatch.setattr(loop1.Task, "reread", with_own_tensors)
    monkeypatch.setattr(loop1, "straight_through", soft_forward)
    mask_alone = {"loss": case.config.train.loss.model_copy(update={"language": 0.0})}
    case.model.eval()  # dropout would differ from run to run

    losses, example = run_loop1(case, train=mask_alone)
    assert any(example.texts["teacher"]), "the teacher says something"
    found = torch.autograd.grad(losses.total, list(first_pass.values()))
    for part in ("lora_A", "lora_B", "mlp1"):
        norm = sum(float(g.norm()) for name, g in zip(first_pass, found, strict=True) if part in name)
        assert norm > 1e-6, f"no gradient of the mask reaches {part} in the first pass"
    length = sum(float(g.square().sum()) for g in found) ** 0.5

    def moved(by: float) -> float:
        with torch.no_grad():
            for tensor, gradient in zip(first_pass.values(), found, strict=True):
                tensor.add_(gradient, alpha=by / length)
        value = float(run_loop1(case, train=mask_alone)[0].total.detach())
        with torch.no_grad():
            for tensor, gradient in zip(first_pass.values(), found, strict=True):
                tensor.sub_(gradient, alpha=by / length)
        return value

    step = 2e-4  # small: the best of three masks, and the top-k, change by jumps
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(length, rel=0.05)


def test_the_temperature_goes_from_one_to_the_other(case: TaskCase) -> None:
    """On a line over the steps; a run of one step has the first."""
    settings = case.task("loop1", tau=1.0, tau_end=0.4).settings
    assert [settings.tau_at(step, 4) for step in range(4)] == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert settings.tau_at(0, 1) == 1.0


@pytest.mark.second
def test_only_gumbel_reaches_back(case: TaskCase) -> None:
    through = {bridge: run_loop1(case, bridge=bridge)[0] for bridge in ("gumbel", "hard", "discrete")}
    assert float(through["gumbel"].values["loop1_mask"]) > 0 and "loop1_caption_gradient2" in through["gumbel"].values
    case.gradients(through["gumbel"])
    assert float(through["gumbel"].values["loop1_caption_gradient2"]) > 0
    assert all("loop1_caption_gradient2" not in through[bridge].values for bridge in ("hard", "discrete"))
    hard = run_loop1(case, bridge="hard")[1]
    assert hard.texts["student"] == hard.texts["teacher"]


def test_detached_is_gumbel_without_the_gradient_through_the_caption(case: TaskCase) -> None:
    """The same words, the same loss; the first pass learns nothing from the mask, the second one the same as before."""
    case.model.eval()  # dropout would differ from run to run
    found = {}
    for bridge in ("gumbel", "detached"):
        losses, example = run_loop1(case, bridge=bridge)
        found[bridge] = (losses.total.item(), example.texts["student"], example.texts["teacher"], case.gradients(losses))
    assert found["gumbel"][:3] == found["detached"][:3] and found["detached"][1] != found["detached"][2]
    through, without = found["gumbel"][3], found["detached"][3]
    decoder = [name for name in through if "text_hidden_fcs" in name or "sam_mask_decoder" in name]
    assert decoder and all(torch.allclose(through[name], without[name], rtol=1e-4, atol=1e-7) for name in decoder)
    assert any(not torch.allclose(through[name], without[name], rtol=1e-2) for name in through if "lora_B" in name)


def test_a_given_caption_is_the_datas_own(case: TaskCase) -> None:
    """As `hard`, with the data's first text in place of the teacher's caption; masks without a text are no samples."""
    case.model.eval()
    described: dict[str, Any] = {"bridge": "given", "sources": {"describe": MaskSource()}}
    given = case.task("loop1", **described).batch(range(4))
    _, example = run_loop1(case, given, **described)
    assert example.texts["student"] == given.given and all(given.given) and example.texts["teacher"] != given.given
    hard, of_teacher = run_loop1(case, bridge="hard")
    same = dataclasses.replace(drawn(case), given=[str(text) for text in of_teacher.texts["teacher"]])
    assert run_loop1(case, same, **described)[0].total.item() == pytest.approx(hard.total.item(), rel=1e-6)
    with pytest.raises(ValueError, match="^train.loop1.sources: sav: no sample"):
        case.task("loop1", bridge="given", sources={"sav": MaskSource()})


@pytest.mark.second
def test_the_denoising_loss_does_not_ask_for_the_bridge(case: TaskCase) -> None:
    """Whatever is passed on, the student's reading is taught the same; what is passed on stays what the bridge says."""
    case.model.eval()
    found = {}
    for bridge in ("gumbel", "detached", "hard", "discrete"):
        losses, example = run_loop1(case, bridge=bridge, denoising=0.5, rescored="corrupted")
        plain, other = run_loop1(case, bridge=bridge, rescored="corrupted")
        assert example.texts["student"] == other.texts["student"]
        found[bridge] = float(losses.values["loop1_denoising"])
        assert losses.total.item() == pytest.approx(plain.total.item() + 0.5 * found[bridge], rel=1e-5)
    assert len(set(found.values())) == 1 and found["hard"] > 0


def test_all_groups_learn_and_nothing_else_changes(case: TaskCase) -> None:
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    found = case.gradients(run_loop1(case)[0])
    for part in ("lora_A", "lora_B", "mlp1", "text_hidden_fcs", "sam_mask_decoder"):
        assert any(g is not None and g.abs().max() > 0 for name, g in found.items() if part in name), part
    assert case.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())


@pytest.mark.second
def test_options_add_their_terms(case: TaskCase) -> None:
    plain = run_loop1(case)[0]
    for option, value in (
        ("denoising", "loop1_denoising"),
        ("distillation", "loop1_distillation"),
        ("reward", "loop1_earned"),
    ):
        losses = run_loop1(case, **{option: 0.5})[0]
        assert value in losses.values and value not in plain.values
        if option != "reward":
            assert float(losses.total) == pytest.approx(float(plain.total) + 0.5 * float(losses.values[value]), rel=1e-4)


@pytest.mark.second
def test_confidence_weighs_each_mask(case: TaskCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask losses add up with the teacher's confidence as weight; the language loss does not know of it."""
    plain, example = run_loop1(case)
    sure = [0.9, 0.0, 0.5, 0.1]
    describe = loop1.describe
    monkeypatch.setattr(loop1, "describe", lambda *arguments: (*describe(*arguments)[:2], sure))
    assert float(run_loop1(case)[0].total) == float(plain.total), "off by default"
    weighed, _ = run_loop1(case, confidence=True)
    soft = drawn(case).targets.soft
    for name, term in (("mask", mask.cross_entropy), ("dice", mask.dice)):
        each = term(example.logits.flatten(1), soft.flatten(1))
        assert float(weighed.values[f"loop1_{name}"]) == pytest.approx(float((torch.tensor(sure) * each).sum()) / 4, rel=1e-5)
    assert float(weighed.values["loop1_language"]) == float(plain.values["loop1_language"])
    assert float(weighed.values["loop1_teacher_confidence"]) == pytest.approx(sum(sure) / 4)


def test_without_noise_the_likeliest_token_is_said(case: TaskCase) -> None:
    """And the noise that was drawn does not matter then."""
    batch = drawn(case)
    loud = dataclasses.replace(batch, noise=9 * batch.noise)
    still = dataclasses.replace(batch, noise=torch.zeros_like(batch.noise))
    said = {}
    for name, of, noise in (("loud", loud, 1.0), ("scaled", loud, 0.0), ("still", still, 1.0)):
        said[name] = run_loop1(case, of, noise=noise)[1].texts["student"]
    assert said["scaled"] == said["still"] != said["loud"]


def test_the_denoising_loss_by_hand(case: TaskCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object's mean over its own corrupted tokens; objects weigh the same, however many tokens were corrupted."""
    case.model.eval()
    said = [case.model.text_tokens[:length].tolist() for length in (8, 4, 12, 1)]
    monkeypatch.setattr(loop1, "describe", lambda *_: (said, [True] * 4, [1.0] * 4))
    kept, straight = [], loop1.straight_through
    monkeypatch.setattr(loop1, "straight_through", lambda logits, *rest: kept.append(logits) or straight(logits, *rest))
    monkeypatch.setattr(loop1.captions, "only_text", lambda logits, _: logits)  # any token may be predicted
    found = float(run_loop1(case, denoising=0.5, bridge="hard")[0].values["loop1_denoising"])
    logits = kept[0].detach().log_softmax(-1).split([len(ids) for ids in said])
    batch, expected = drawn(case), 0.0
    for ids, uniform, scores in zip(said, batch.corruption, logits, strict=True):
        shown = corrupt(ids, 0.25, uniform, case.model.text_tokens)
        losses = [-float(row[true]) for row, true, other in zip(scores, ids, shown, strict=True) if true != other]
        expected += sum(losses) / max(1, len(losses)) / 4
    assert found == pytest.approx(expected, rel=1e-4) and found > 0


def test_a_stop_word_that_is_text_is_no_part_of_a_caption(case: TaskCase) -> None:
    """Sa2VA-4B ends its answers with `<|end|>`, which its tokenizer cuts into ordinary tokens."""
    model = case.model
    words = model.tokenizer.encode("small red star", add_special_tokens=False)
    text = set(model.text_tokens.tolist())

    def said(ids: list[int], *stop_words: str) -> list[int]:
        return tokens.text_ids(model.tokenizer, stop_words, ids, text)

    assert len(words) == 3 and said([*words, model.tokenizer.eos_token_id]) == words
    assert said(words, "star") == words[:2] and said(words[2:], "star") == []
    assert tokens.ended(model.tokenizer, ("star",), words) and not tokens.ended(model.tokenizer, ("star",), words[:2])


def test_a_teacher_that_repeats_itself_shows(case: TaskCase, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, different in (([[5], [5], [5], [5]], 0.0), ([[5], [6], [5], [7]], 0.5), ([[5], [6], [7], [8]], 1.0)):
        monkeypatch.setattr(loop1, "describe", lambda *_, said=said: (said, [True] * 4, [1.0] * 4))
        assert float(run_loop1(case, bridge="hard")[0].values["loop1_teacher_different"]) == different


def test_only_corrupted_tokens_are_predicted_again(case: TaskCase) -> None:
    changed = float(run_loop1(case, rescored="corrupted")[0].values["loop1_changed_tokens"])
    assert changed <= float(run_loop1(case)[0].values["loop1_changed_tokens"]) + 1e-6
    assert changed <= 0.4
    none = run_loop1(case, rescored="corrupted", mask_ratio=0.0)[1]
    assert none.texts["student"] == none.texts["teacher"]


def test_corruption(case: TaskCase) -> None:
    text = case.model.text_tokens
    special = {case.model.seg_token, case.model.image_token, case.model.tokenizer.eos_token_id, case.model.tokenizer.pad_token_id}
    assert not special & set(text.tolist()) and len(text) > 50
    uniform = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
    ids = list(range(1000, 1012))
    for ratio, expected in ((0.0, 0), (0.25, 3), (1.0, 12)):
        other = corrupt(ids, ratio, uniform, text)
        assert sum(a != b for a, b in zip(ids, other, strict=True)) == expected
        assert all(b in set(text.tolist()) for a, b in zip(ids, other, strict=True) if a != b)
    assert corrupt([], 0.25, uniform, text) == []
    uniform = torch.tensor([[0.9, 0.0], [0.1, 0.5], [0.5, 0.0], [0.2, 0.99]])  # which, by what
    assert corrupt([1, 2, 3, 4], 0.5, uniform, torch.arange(10, 20)) == [1, 15, 3, 19]


def test_loop1_without_a_caption_still_segments(case: TaskCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop1, "describe", lambda *_: ([[]] * 4, [True] * 4, [1.0] * 4))
    for changes in ({}, {"rescored": "corrupted", "denoising": 0.5}):
        losses, _ = run_loop1(case, **changes)
        assert losses.total.isfinite() and float(losses.values["loop1_teacher_empty"]) == 1.0


@pytest.mark.second
def test_loop2_teaches_by_caption_alone(case: TaskCase) -> None:
    """Without options no gradient runs through the mask; `soft_region` lets it, `mask_supervision` adds its own."""

    def reaches_decoder(**changes: Any) -> bool:
        task = case.task("loop2", **changes)
        found = case.gradients(case.losses(task, task.batch(range(4))))
        assert any(g is not None and g.abs().max() > 0 for name, g in found.items() if "lora_B" in name)
        assert any(g is not None and g.abs().max() > 0 for name, g in found.items() if "mlp1" in name)
        return any(g is not None and g.abs().max() > 0 for name, g in found.items() if "sam_mask_decoder" in name)

    assert not reaches_decoder()
    assert reaches_decoder(mask_supervision=1.0)
    assert reaches_decoder(soft_region=True)


def test_loop2_tells_freely_what_it_found(case: TaskCase) -> None:
    """To look changes no loss and no gradient, and what is told is the model's own description of the mask that it found."""
    case.model.eval()
    task = case.task("loop2")
    batch = task.batch(range(2))
    losses = case.losses(task, batch)
    unseen = case.losses(task, batch, examples=False)
    assert float(losses.total) == float(unseen.total) and unseen.example is None
    assert losses.example.texts["data"] == batch.texts
    grids = [case.model.config.family.grid(*size).region for size in batch.images.sizes]
    cells = [share > 0.5 for share in region_shares(losses.example.logits, grids)]
    longest = max(map(len, batch.captions))
    ids, *_ = case.model.caption_ids(case.features(batch), [0, 1], cells, batch.describe_questions, longest)
    assert losses.example.texts["model"] == [case.model.tokenizer.decode(row) for row in ids]


def test_loop2_keeps_an_empty_mask(case: TaskCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ans.tasks.loop2.region_shares", lambda logits, grids: [share * 0 for share in region_shares(logits, grids)]
    )
    task = case.task("loop2")
    losses = case.losses(task, task.batch(range(4)))
    assert float(losses.values["loop2_non_empty"]) == 0 and float(losses.values["loop2_caption"]) > 0


def test_loop2_loss_by_hand(case: TaskCase) -> None:
    """The caption's cross-entropy, row by row with transformers' own forward, the end token included."""
    case.model.eval()
    task = case.task("loop2")
    batch = task.batch(range(2))
    losses = case.losses(task, batch)
    model, total = case.model, 0.0
    features = case.features(batch)
    visual = [one.tokens for one in model.image_tokens(features)]
    grid = model.config.family.grid(*features.sizes[0])
    image = model.template.image_string(grid.tokens)
    for n, caption in enumerate(batch.captions):
        answered = model.tokenizer.encode(
            model.template.instruction.format(input=image + batch.questions[n].format(batch.texts[n]))
            + batch.answers[n]
            + "<|im_end|>"
        )
        embeds = model.vlm.embed(torch.tensor([answered]), visual[n].flatten(0, 1), model.image_token)
        hidden = model.vlm.language_model.model(inputs_embeds=embeds).last_hidden_state[0]
        at = answered.index(model.seg_token)
        logits = model.masks(features, torch.tensor([n]), model.seg_embed(hidden[at : at + 1])).low_res
        cells = region_shares(logits, [grid.region])[0] > 0.5
        prompt = model.tokenizer.encode(
            model.template.instruction.format(input=image + model.region_question(cells[None], batch.describe_questions[n]))
        )
        tokens = torch.cat([visual[n].flatten(0, 1), visual[n][-1][cells.flatten()]])
        embeds = model.vlm.embed(torch.tensor([prompt + caption]), tokens, model.image_token)
        logits = model.vlm.language_model(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(caption), reduction="sum"))
    caption, answer = (float(losses.values[f"loop2_{name}"]) for name in ("caption", "language"))
    assert caption == pytest.approx(total / sum(map(len, batch.captions)), rel=1e-4)
    assert losses.total.item() == pytest.approx(caption + answer, rel=1e-5), "each a mean over its own labels"


OPTIONS: dict[str, dict[str, Any]] = {
    "referring": {}, "loop1": {"denoising": 0.5, "imitation": 0.5, "distillation": 0.5, "reward": 0.1}, "loop2": {},
    "captioning": {},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.second
def test_panels_show_what_the_task_writes(case: TaskCase, name: str) -> None:
    task = case.task(name, **OPTIONS[name])
    losses = case.losses(task, task.batch(range(2)))
    case.gradients(losses)
    written = task.finish({key: float(value) for key, value in losses.values.items()})
    for panel in task.panels:
        assert panel.title and panel.curves and panel.curves.keys() <= written.keys() and all(panel.curves.values())
        if panel.share:
            assert all(0 <= written[curve] <= 1 for curve in panel.curves)
    assert losses.values.keys() <= {f"{task.prefix}_{key}" for key in ("caption_gradient2",)} | written.keys()
