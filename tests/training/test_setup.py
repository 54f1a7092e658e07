"""What a training is put together from: groups of the optimizer, places in the flat gradient, steps, and the sum over what is frozen."""

import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ans.config import Config
from ans.model.adapters import group_of_parameter
from ans.model.segmenter import Segmenter
from ans.objectives.batches import Images
from ans.shown import Panel
from ans.training import setup, signals
from ans.training.manifest import describe
from ans.training.mixture import Mixture
from ans.training.state import ResumeError, ResumeFolder
from ans.workspace import Workspace
from tests import pipeline


@pytest.fixture(scope="module")
def config() -> Config:
    return pipeline.small_config(pipeline.REPOSITORY, train__weight_decay=0.03, train__lr=0.5, train__lr_sam2_scale=0.1)


@pytest.fixture(scope="module")
def made(config: Config) -> tuple[Segmenter, dict[str, nn.Parameter]]:
    return setup.load_model(config.train, pipeline.REPOSITORY / "weights" / "tiny", torch.device("cpu"))


def test_what_is_trained_is_float32_and_the_rest_frozen(config: Config, made) -> None:
    model, trained = made
    assert {group_of_parameter(model, name) for name in trained} == set(config.train.trained)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trained.values())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained.keys()


def test_processes_share_one_folder_and_the_first_locks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first reads the inputs; what it found is told to the others."""
    config, work = pipeline.small_config(tmp_path, train__batch=4), Workspace(tmp_path)
    for name in config.training_indexes():
        work.index(name).parent.mkdir(parents=True, exist_ok=True)
        work.index(name).write_text(name)
    told: list[Any] = []

    def broadcast(values: list[Any]) -> None:
        if values != [{}]:
            told.append(values[0])
        values[0] = told[0]

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    tasks: Any = {"one": SimpleNamespace(checksums=lambda: {"read.json": "c" * 64})}

    def folder(first: bool, base: str) -> ResumeFolder:
        accelerator: Any = SimpleNamespace(is_main_process=first, num_processes=2)
        return setup.resume_folder(config, work, base, tasks, accelerator)

    one = folder(True, "b" * 64)
    other = folder(False, "")
    assert one.folder == other.folder and one.description == other.description == told[0]
    assert told[0]["the contents of read.json"] == "c" * 64 and told[0]["the effective batch"] == config.train.effective_batch(2)
    assert one.conditions["features on disk (launch.feature_cache_gb)"] == "off" and len(one.conditions["code"]) == 64
    assert one.seconds == config.launch.save_state_seconds
    with pytest.raises(ResumeError, match="this run is locked"):
        folder(True, "b" * 64)
    assert told[-1] == told[0]
    one.remove()


def test_the_row_of_seg_and_recomputing_are_as_asked() -> None:
    base = pipeline.REPOSITORY / "weights" / "tiny"
    for groups, again in ((["seg_row", "fcs"], True), (["fcs"], False)):
        config = pipeline.small_config(pipeline.REPOSITORY, train__groups=groups, train__checkpoint_activations=again)
        model, trained = setup.load_model(config.train, base, torch.device("cpu"))
        assert {group_of_parameter(model, name) for name in trained} == set(groups)
        assert model.vlm.language_model.is_gradient_checkpointing is again


def test_lora_lies_on_its_targets_alone() -> None:
    config = pipeline.small_config(pipeline.REPOSITORY, train__groups=["lora"], train__lora__targets=["q_proj"])
    _, trained = setup.load_model(config.train, pipeline.REPOSITORY / "weights" / "tiny", torch.device("cpu"))
    assert trained and all(".q_proj." in name for name in trained)


def test_features_on_disk_are_those_of_the_model(made, tmp_path: Path) -> None:
    """With `launch.feature_cache_gb`; a second run of that folder encodes nothing."""
    model, _ = made
    pictures = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 60, 3), dtype=np.uint8)) for n in range(2)]
    family, decoder = model.config.family, model.config.decoder
    images = Images(
        [family.pixels(one) for one in pictures], torch.stack([decoder.pixels(one) for one in pictures]), [(40, 60)] * 2
    )
    found = []
    for gigabytes in (0.0, 0.1, 0.1):
        config = pipeline.small_config(pipeline.REPOSITORY, launch__feature_cache_gb=gigabytes)
        with torch.no_grad(), model.evaluating():
            found.append(setup.image_encoder(config, model, Workspace(tmp_path), 1)(images))
        assert (tmp_path / "runs" / "features").exists() == (gigabytes > 0)
    for other in found[1:]:
        assert other.sizes == found[0].sizes
        for one, two in zip(found[0].levels, other.levels, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_decoder_has_its_own_rate_and_all_decay(config: Config, made) -> None:
    model, trained = made
    optimizer = setup.new_optimizer(model, trained, config.train)
    rest, decoder = optimizer.param_groups
    names = {id(p): name for name, p in trained.items()}
    assert {group_of_parameter(model, names[id(p)]) for p in decoder["params"]} == {"sam2_decoder"}
    assert sorted(names[id(p)] for group in (rest, decoder) for p in group["params"]) == sorted(trained)
    assert (rest["lr"], decoder["lr"]) == (0.5, 0.05)
    assert rest["weight_decay"] == decoder["weight_decay"] == 0.03
    alone = {name: p for name, p in trained.items() if group_of_parameter(model, name) == "lora"}
    assert [len(group["params"]) for group in setup.new_optimizer(model, alone, config.train).param_groups] == [len(alone)]


def test_each_group_lies_where_its_tensors_do(made) -> None:
    model, trained = made
    flat = torch.cat([torch.full((p.numel(),), float(number)) for number, p in enumerate(trained.values())])
    found = setup.slices_of_groups(model, trained)
    numbers = {name: float(number) for number, name in enumerate(trained)}
    for group, slices in found.items():
        mine = {numbers[name]: p.numel() for name, p in trained.items() if group_of_parameter(model, name) == group}
        inside = torch.cat([flat[part] for part in slices])
        assert {number: int((inside == number).sum()) for number in mine} == mine and len(inside) == sum(mine.values())
        assert all(one.stop < other.start for one, other in zip(slices, slices[1:], strict=False)), "parts that touch are one"


def test_any_bit_of_what_is_frozen_is_seen(made) -> None:
    model, trained = made
    before = setup.frozen_checksum(model, trained)
    next(iter(trained.values())).data.add_(1)
    assert setup.frozen_checksum(model, trained) == before
    frozen = [p for name, p in model.named_parameters() if name not in trained]
    for tensor in (frozen[0], frozen[-1]):
        flat = tensor.data.view(-1)
        for changed in (flat[0] * 2 + 1, flat[0] + 1e-3):
            kept = flat[0].clone()
            flat[0] = changed
            assert setup.frozen_checksum(model, trained) != before
            flat[0] = kept
        flat[[0, 1]] = flat[[1, 0]]
        assert bool(flat[0] == flat[1]) or setup.frozen_checksum(model, trained) != before, "two numbers that change places"
        flat[[0, 1]] = flat[[1, 0]]
    assert setup.frozen_checksum(model, trained) == before


@pytest.mark.second
def test_sums_go_over_every_kind_and_length() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trained = nn.Parameter(torch.ones(2))
            for dtype in (torch.bfloat16, torch.uint8, torch.float64, torch.int64):
                self.register_buffer("of_" + str(dtype).partition(".")[2], torch.arange(5).to(dtype))
            self.register_buffer("long", torch.zeros((1 << 22) + 3, dtype=torch.uint8))

    model = Odd()
    before = setup.frozen_checksum(model, {"trained": model.trained})
    for name, buffer in list(model.named_buffers()):
        for place in (0, -1):
            kept = buffer[place].clone()
            buffer[place] += 1
            assert setup.frozen_checksum(model, {"trained": model.trained}) != before, name
            buffer[place] = kept
    assert setup.frozen_checksum(model, {"trained": model.trained}) == before


class Task:
    def __init__(self, role: str, length: int) -> None:
        self.role, self.length = role, length

    def __len__(self) -> int:
        return self.length


def test_steps_of_an_epoch_and_of_the_run() -> None:
    def steps(epochs: int | None, processes: int = 1, **tasks: Any) -> tuple[int, int]:
        changes = {"train__loop1__enabled": False, "train__loop2__enabled": False}
        config = pipeline.small_config(
            pipeline.REPOSITORY, train__epochs=epochs or "none", train__batch=4, train__accumulation=2, train__steps=3, **changes
        )
        return setup.steps_of(config.train, tasks, processes)

    one = Task("primary", 33)
    assert steps(3, one=one) == (15, 5) and steps(3, 2, one=one) == (9, 3)  # 33 / 8, 33 / 16, rounded up
    assert steps(None, one=one) == (3, 5)
    assert steps(2, help=Task("auxiliary", 900), one=one) == (10, 5), "a pass over the primary one"
    assert steps(None, one=one, two=Task("primary", 900)) == (3, 5)
    with pytest.raises(ValueError, match="train.epochs: .*one, two take turns"):
        steps(2, one=one, two=Task("primary", 1), three=Task("auxiliary", 1))
    assert steps(None, help=Task("auxiliary", 9)) == (3, 3)


def test_batches_begin_where_they_are_asked_to() -> None:
    class Numbers:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> int:
            return index

    empty = Mixture({}, steps=2, batch=1, accumulation=3)
    assert len(empty) == 6
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            empty[outside]
    mixture: Any = Numbers()
    assert list(setup.batches(mixture, 2, 0)) == [2, 3, 4, 5] and list(setup.batches(mixture, 0, 2)) == [0, 1, 2, 3, 4, 5]


def test_the_manifest_sums_up_the_tasks(config: Config, made) -> None:
    def task(name: str, title: str, role: str, panel: Panel) -> Any:
        return SimpleNamespace(
            title=title, role=role, examples=(name,), prefix=name, settings=SimpleNamespace(model_dump=lambda: {"of": name}),
            left_out=len(name), sizes=lambda: {f"{name}_set": len(title)}, checksums=lambda: {f"{name}.json": name * 2},
            panels=(panel,),
        )  # fmt: skip

    tasks: Any = {
        "one": task("one", "first", "primary", Panel("Dice loss", {"one_more": "more"}, share=True)),
        "other": task("other", "second task", "auxiliary", Panel("of its own", {"other_x": "x"}, share=True, log=True)),
    }
    model, trained = made
    found = describe(config, model, trained, tasks, 12, "b" * 64, 3)
    assert found["samples"] == {"one_set": 5, "other_set": 11} and found["left_out_evaluated_images"] == 8
    assert found["read_sha256"] == {"one.json": "oneone", "other.json": "otherother"} and found["base_sha256"] == "b" * 64
    assert (found["steps"], found["processes"], found["effective_batch"]) == (12, 3, config.train.effective_batch(3))
    assert found["trained"] == list(config.train.trained) and found["train"]["lr"] == 0.5
    assert found["tasks"]["other"] == {
        "title": "second task", "role": "auxiliary", "examples": ("other",), "settings": {"of": "other"},
    }  # fmt: skip
    panels = {panel["title"]: panel for panel in found["panels"]}
    assert list(panels)[:5] == [
        "loss of the primary tasks, all parts",
        "mask cross-entropy",
        "Dice loss",
        "language loss on the answer",
        "of its own",
    ]
    curves = {"one_dice": "first", "other_dice": "second task", "one_more": "more"}
    assert panels["Dice loss"] == {"title": "Dice loss", "curves": curves, "share": False, "log": False}
    assert panels["of its own"] == {"title": "of its own", "curves": {"other_x": "x"}, "share": True, "log": True}
    shown = {title: list(panel["curves"]) for title, panel in panels.items()}
    assert shown["mask cross-entropy"] == ["one_mask", "other_mask"] and shown["training IoU"] == [
        "one_train_iou",
        "other_train_iou",
    ]
    assert shown["language loss on the answer"] == ["one_language", "other_language"] and shown["learning rate"] == ["lr"]
    assert shown["share of answers with [SEG]"] == ["one_seg_rate", "other_seg_rate"] and shown["gradient norm"] == ["grad_norm"]
    assert shown["validation split"] == ["val_ciou", "val_miou", "val_box_giou", "val_p50", "val_seg_rate"]
    assert panels["share of answers with [SEG]"]["share"] and found["versions"].keys() == {"torch", "python"}
    plain = describe(config, model, trained, {}, 12, "", 1)
    assert "read_sha256" not in plain and plain["samples"] == {} and plain["left_out_evaluated_images"] == 0


def test_a_signal_to_stop_is_noted_and_held_back_from_workers() -> None:
    before = {number: signal.getsignal(number) for number in signals.STOP}
    try:
        for number in signals.STOP:
            stop = signals.StopSignal()
            assert stop.received is False
            signal.raise_signal(number)
            assert stop.received is True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(KeyError), signals.blocked_in_workers():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked | set(signals.STOP)
        raise KeyError
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked


def test_a_worker_ends_at_the_sigterm_of_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real workers: tests/training/test_resume.py."""
    with pytest.raises(AssertionError, match="this is not a worker"):
        signals.end_with_the_training(0)
    senders, waited, codes, ended = iter([99, 7]), list[object](), list[int](), threading.Event()

    def wait(numbers: object) -> SimpleNamespace:
        waited.append(numbers)
        return SimpleNamespace(si_pid=next(senders))

    monkeypatch.setattr(signals.multiprocessing, "parent_process", lambda: SimpleNamespace(pid=7))
    monkeypatch.setattr(signals.signal, "sigwaitinfo", wait)
    monkeypatch.setattr(signals.os, "_exit", lambda code: (codes.append(code), ended.set()))
    signals.end_with_the_training(0)
    assert ended.wait(10) and codes == [0] and waited == [{signal.SIGTERM}] * 2


def test_checksums_are_of_all_tasks() -> None:
    tasks: Any = {name: SimpleNamespace(checksums=lambda name=name: {f"{name}.json": name * 2}) for name in "ab"}
    assert setup.checksums(tasks) == {"a.json": "aa", "b.json": "bb"}
