"""What a task is. The trainer knows its name and which gradient it feeds, and nothing else."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ans.config.schema import VideoFolder
from ans.config.tasks import TaskSettings
from ans.config.training import TrainSettings
from ans.data.arrow import Index
from ans.data.bad_images import BadImages
from ans.data.clips import Clip, read
from ans.data.mixing import keyed_rng
from ans.data.records import left_out
from ans.data.samples import Evaluated
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.segmenter import Features, Segmenter
from ans.objectives.batches import Images, TargetsOf
from ans.shown import Panel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What every task is given: the settings of the training, the model's sizes and words, where the data lies, and which photographs
    are evaluated, so that no task learns from them. `evaluated_clips`: the frames or video files of the clips that are evaluated."""

    train: TrainSettings
    model: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    root: Path
    open_index: Callable[[str], Index]
    evaluated: Evaluated = field(default_factory=Evaluated)
    evaluated_clips: Evaluated = field(default_factory=Evaluated)
    max_bad_fraction: float = 0.0

    @property
    def template(self) -> prompts.Template:
        return self.model.template

    def clips(self, name: str, of: VideoFolder, usable: Callable[[Clip], bool]) -> tuple[list[Clip], int]:
        """Return the usable clips of a set that are not evaluated, and how many are. Raises `ValueError`, beginning with `name`, for a set
        without a usable one, and what the reader raises."""
        records = list(read(of.reader, self.root, of.folder, of.split))
        for item in left_out(records):
            log.warning(f"{name}: {item.key} is left out: {item.reason}")
        found = [clip for clip in records if isinstance(clip, Clip) and usable(clip)]
        if not found:
            raise ValueError(f"{name}: split {of.split!r} of {self.root / of.folder} has no clip whose masks are known")
        kept = [
            clip
            for clip in found
            if not any(self.evaluated_clips.holds(file, "") or self.evaluated.holds(file, "") for file in clip.files)
        ]
        return kept, len(found) - len(kept)

    def answer_tokens(self, answers: Sequence[str]) -> int:
        """Return labels that the language loss counts in these answers."""
        encode = self.tokenizer.encode
        return sum(len(encode(text + self.template.suffix, add_special_tokens=False)) for text in answers)

    def targets(self) -> TargetsOf:
        """Return an empty collection of a micro-batch's masks."""
        return TargetsOf(self.model, self.train.mask_points)


@dataclass(frozen=True)
class Now:
    """The step (from 0) of `steps`. Within `teacher()` the model is the teacher. `examples`: keep some for the report."""

    step: int
    steps: int
    teacher: Callable[[], AbstractContextManager[None]]
    examples: bool = False


@dataclass(frozen=True)
class Example:
    """What a task did with R objects, to be looked at in the report: an image and a source each, texts by a name, and the mask
    logits (R, S/4, S/4) beside the true masks (R, S/4, S/4), soft in [0, 1]."""

    where: Sequence[tuple[str, str]]
    texts: Mapping[str, Sequence[str]]
    logits: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Losses:
    """One micro-batch's share of its step. `total` is differentiated; `values` are for the curves, already divided by the step's
    counts, so that those of all micro-batches and processes add up."""

    total: Tensor
    values: dict[str, Tensor]
    example: Example | None = None


class Batch(Protocol):
    """What a task's micro-batch has at least."""

    @property
    def images(self) -> Images: ...

    @property
    def counts(self) -> dict[str, int]:
        """What losses are divided by, under the names of `Task.counted`."""
        ...


Wordings = Annotated[
    int,
    Field(
        ge=1,
        le=len(prompts.DESCRIBE_PROMPTS),
        description=f"wordings of the description question in use, 1 to {len(prompts.DESCRIBE_PROMPTS)}",
    ),
]
"""A setting of the tasks that describe."""

S = TypeVar("S", bound=TaskSettings)
B = TypeVar("B", bound=Batch)

CHECKED_STEPS = 20
"""Steps over which `Task.check` sees means; single batches are small."""


class Degenerate(ArithmeticError):
    """The run has left the region in which its losses mean anything."""


class Task(ABC, Generic[S, B]):
    """An objective with its data.

    A file of `ans/tasks` has one, under the name `Task`, and its settings under the name `Settings`. Samples are drawn by position
    and keyed randomness, so that any number of processes, and a resumed run, see the same.
    """

    role: ClassVar[Literal["primary", "auxiliary"]]
    """Primary tasks take turns, in proportion to their samples; an auxiliary task has a micro-batch in every step, and its gradient
    is combined with the primary one by surgery."""

    stream: ClassVar[int]
    """Tells the random choices of tasks apart; no two tasks have the same."""

    counted: ClassVar[tuple[str, ...]]
    """Names of the counts that a step's losses are divided by."""

    title: ClassVar[str]
    """What the report calls it."""

    prefix: ClassVar[str]
    """What its curves' names begin with. The report and the health check know `<prefix>_mask`, `_dice`, `_language`, `_train_iou` and
    `_seg_rate`; a task need not have them all."""

    examples: ClassVar[str] = ""
    """What its examples show, for the report."""

    panels: ClassVar[tuple[Panel, ...]] = ()
    """Further curves that the report shows."""

    teacher: ClassVar[bool] = False
    """Whether it needs the teacher."""

    left_out = 0
    """Images left out because an evaluated split has them."""

    _bad: BadImages | None = None

    def __init__(self, settings: S, setting: Setting) -> None:
        self.settings, self.setting = settings, setting

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return samples of each source, for the manifest."""

    def checksums(self) -> dict[str, str]:
        """Return those of what the task has read besides indexes, by name: they are part of what decides the run's result."""
        return {}

    @abstractmethod
    def __len__(self) -> int:
        """Return samples of an epoch."""

    def bad_images(self, total: int) -> BadImages:
        """Return a count of the images, of `total`, that cannot be opened."""
        self._bad = BadImages(total, self.setting.max_bad_fraction)
        return self._bad

    def count_bad_images_in(self, path: Path) -> None:
        """Keep that count in a file, so that all processes and their workers have one."""
        if self._bad is not None:
            self._bad.path = path

    @abstractmethod
    def batch(self, positions: range) -> B:
        """Return the micro-batch of the samples at these positions of an endless order."""

    @abstractmethod
    def losses(self, model: Segmenter, features: Features, batch: B, counts: Mapping[str, int], now: Now) -> Losses:
        """Return one micro-batch's share of the loss. `features` are of its images; `counts` of the whole step, over all micro-batches
        and processes."""

    def finish(self, values: dict[str, float]) -> dict[str, float]:
        """Return a step's values, summed over micro-batches and processes, as the curves show them."""
        return values

    def check(self, step: int, means: Mapping[str, float]) -> str | None:
        """Return a warning, said once, or None. `means`: of each curve over the last `CHECKED_STEPS` steps that had it.

        Raises `Degenerate` where going on would be pointless.
        """
        return None

    def rng(self, position: int) -> np.random.Generator:
        """Return the generator of the sample at `position`."""
        return keyed_rng(self.setting.train.seed, self.stream, position, 1)


AnyTask = Task[Any, Any]
