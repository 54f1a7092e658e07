"""The sections of `params.yaml`. A setting is told once, here (those of a task in its file below `ans/tasks`): its type, range, unit,
default and documentation. `python -m ans config` prints them with the values in force.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ans.config.fields import NONE, Count, Name, Number, Positive, Section, Seed, Share, Texts, Weight
from ans.model.groups import Group, Part

Precision = Literal["float32", "bf16"]

Parts = Annotated[tuple[Part, ...], Field(strict=False)]
Groups = Annotated[tuple[Group, ...], Field(strict=False)]

SUBSET = "sa1b_subset"
"""The index of SA-1B's images that are used; the index `sa1b` only lists all of them."""

READERS = Path(__file__).parents[1] / "data" / "sources"


class Paths(Section):
    root: str = Field(description="folder of the published data sets; data/world is the synthetic world")


class Launch(Section):
    """How a run is started. Not tracked by DVC: 1 and 8 GPUs are the same experiment."""

    processes: Count = Field(description="processes per machine, one for each GPU")
    machines: Count = Field(description="machines that take part")
    machine_rank: Number = Field(description="which of the machines this one is, from 0")
    main_address: str = Field(description="address of machine 0, as the others see it")
    main_port: Annotated[int, Field(ge=1, le=65535)] = Field(description="a free port of machine 0")
    workers: Number = Field(description="data-loading processes beside each training process")
    save_state_seconds: Weight = Field(description="seconds between saved states: what a killed training loses at most")
    feature_cache_gb: Weight = Field(
        description="GB on disk for the frozen encoders' features, shared by epochs and variants; 0: none"
    )

    @model_validator(mode="after")
    def _rank(self) -> "Launch":
        if self.machine_rank >= self.machines:
            raise ValueError("machine_rank: must be below machines")
        return self


class Source(Section):
    """A published data set."""

    reader: str = Field(description="module of ans/data/sources that reads its layout")
    folder: str = Field(description="folder below paths.root")
    max_images: Count | None = Field(None, description="index the first so many images; none: all")
    max_samples: Annotated[Count | None, NONE] = Field(None, description="index the first so many masks; none: all")

    @field_validator("reader")
    @classmethod
    def _there(cls, name: str) -> str:
        readers = sorted(path.stem for path in READERS.glob("*.py") if path.stem not in ("__init__", "common", "own"))
        if name not in readers:
            raise ValueError(f"no reader named {name!r}; there are {', '.join(readers)}")
        return name


class Own(Section):
    """A folder of your own data (docs/your-data.md)."""

    folder: str = Field(description="folder below paths.root")

    reader: ClassVar[str] = "own"
    max_images: ClassVar[None] = None
    max_samples: ClassVar[None] = None


class World(Section):
    """The synthetic world that the pipeline runs on by default."""

    seed: Seed = Field(description="random seed of the world")
    train_images: Count = Field(description="images whose objects carry training expressions: few, as a user's own data has")
    val_images: Count = Field(description="images of the val splits")
    test_images: Count = Field(description="images of each test split (testA, testB, RefCOCOg's test)")
    sa1b_images: Count = Field(description="images in SA-1B's layout: masks without text")
    sav_pairs: Count = Field(description="pairs of frames of one moving object, in SA-V's layout")
    openimages_images: Count = Field(description="images in Open Images' layout")
    describe_images: Count = Field(description="images with described regions, in Describe Anything's layout")
    reasonseg_images: Count = Field(description="training images in ReasonSeg's layout; half as many each for val and test")
    shift: Share = Field(description="0: images as the tiny base has seen; 1: textured backgrounds and noise that it has not")


class Index(Section):
    max_bad_fraction: Share = Field(description="share of records that may be unreadable; more stop the run")


class SubsetSa1b(Section):
    """Which images of SA-1B are used, and which of their masks."""

    images: Count = Field(description="images of SA-1B that are used")
    order: Literal["name", "seed"] = Field(description="name: the first in name order; seed: a random sample")
    seed: Seed = Field(description="random seed of the sample")
    min_area_share: Share = Field(description="leave out masks of a smaller share of the image")
    max_area_share: Share = Field(description="leave out masks of a larger share of the image")
    min_predicted_iou: Annotated[float, Field(ge=0, le=2)] = Field(description="leave out masks that SA-1B rates lower")
    min_stability_score: Share = Field(description="leave out masks that SA-1B found less stable")
    max_masks: Count | None = Field(None, description="masks per image, the first in the file's order; none: all")

    @model_validator(mode="after")
    def _areas(self) -> "SubsetSa1b":
        if self.min_area_share > self.max_area_share:
            raise ValueError("min_area_share: must be at most max_area_share")
        return self


class MaskEncoderWeights(Section):
    """The mask decoder's released file, to put a new base together with a vision-language model."""

    location: str = Field(description="address or path of the file")
    sha256: str = Field(description="its sha256; the run stops and asks until it is set")


class Weights(Section):
    """The base: where its weights come from."""

    source: Literal["embedded", "hub", "url", "path"] = Field(description="embedded (in the repository), hub, url or path")
    location: str = Field(description="folder, owner/name on the hub, or address")
    revision: Annotated[str | None, NONE] = Field(
        None, description="40 digits of the hub's commit that you trust; the run stops and asks until it is set"
    )
    sha256: dict[str, str] = Field({}, description="file name -> sha256, checked where given")
    sam2: Annotated[MaskEncoderWeights | None, NONE] = Field(
        None, description="the mask decoder's file, where the base is put together from two models"
    )


class LossWeights(Section):
    """Weights of the losses that all tasks share."""

    mask: Weight = Field(description="weight of the mask's cross-entropy")
    dice: Weight = Field(description="weight of the mask's Dice loss")
    language: Weight = Field(description="weight of the language loss on answers and captions")
    iou: Weight = Field(description="weight of 1 - soft IoU of the mask")
    lisa_dice: bool = Field(description="compute Dice as LISA does")

    @model_validator(mode="after")
    def _some(self) -> "LossWeights":
        if not self.mask + self.dice + self.iou:
            raise ValueError("mask: mask, dice and iou are all 0, so masks would not be learnt")
        return self


class Lora(Section):
    """Low-rank adapters of the language model."""

    enabled: bool = Field(True, description="false: leave group lora out, whatever `groups` says")
    rank: Count = Field(128, description="rank of the adapters")
    alpha: Positive = Field(256.0, description="scale of the adapters times their rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="dropout on the adapters' input")
    targets: Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1), NONE] = Field(
        None, description="linear layers that are adapted, such as q_proj; none: those of the family's official recipe"
    )

    def scale(self) -> float:
        """What the product of the adapters' matrices is multiplied by."""
        return self.alpha / self.rank


class Ema(Section):
    """The teacher: an exponential moving average of the trained tensors."""

    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="share of the old average kept per step; 0: the student itself"
    )
    warmup: bool = Field(False, description="let the decay grow from 0.1, as in TensorFlow")


class Questions(Section):
    """What an evaluation asks. Made by `Evaluate.questions` and `Validation.questions`, not read from a file."""

    splits: tuple[str, ...]
    captions: tuple[str, ...] = ()
    max_samples: int | None = None
    max_texts_per_image: int | None = None

    @property
    def capped(self) -> bool:
        """Whether only a part of each split is evaluated."""
        return self.max_samples is not None or self.max_texts_per_image is not None

    def split_results(self) -> tuple[str, ...]:
        """The names under which the results of `splits` are kept. Those of a part of a split have its size in them
        (images x expressions per image), so that they never stand in the place of a full result."""
        return tuple(self._name(split) for split in self.splits)

    def caption_results(self) -> tuple[str, ...]:
        """The names under which the captioning results of `captions` are kept; see `split_results`."""
        return tuple(self._name(f"{split}_captions") for split in self.captions)

    def _name(self, split: str) -> str:
        return f"{split}_capped_{self.max_samples or 'all'}x{self.max_texts_per_image or 'all'}" if self.capped else split


class Validation(Section):
    """Evaluation of a split after every epoch; the best epoch is kept, and training stops where none better comes."""

    split: str = Field(description="split that is evaluated, <index>_<part>")
    metric: Literal["ciou", "miou", "box_giou", "p50"] = Field("ciou", description="metric by which the best epoch is chosen")
    patience: Count = Field(10, description="epochs without a better one after which training stops")
    save_best_only: bool = Field(True, description="false: keep the last epoch's tensors too")
    max_samples: Annotated[Count | None, NONE] = Field(None, description="images of the split; none: all")
    max_new_tokens: Count = Field(32, description="longest answer, in tokens")
    tokens_per_batch: Count = Field(8192, description="tokens of one batch: rows x (image + question + answer)")

    @property
    def questions(self) -> Questions:
        """What is asked: every expression of the split."""
        return Questions(splits=(self.split,), max_samples=self.max_samples)


class TrainSettings(Section):
    """Training. The settings of each task are a section of their own: `train.<task>` (ans/tasks/<task>.py)."""

    seed: Seed = Field(description="random seed of order, LoRA's start, dropout and all noise")
    steps: Count = Field(1500, description="optimizer steps")
    epochs: Annotated[Count | None, NONE] = Field(
        None, description="passes over the labelled images in place of steps; none: steps count"
    )
    precision: Precision = Field("bf16", description="compute type: float32 or bf16; trained tensors are float32 in any case")
    four_bit: Parts = Field((), description="parts held in 4 bits (NF4): language, vision, sam; needs bitsandbytes")
    groups: Annotated[tuple[Group, ...], Field(strict=False, min_length=1)] = Field(
        ("lora", "proj", "fcs", "sam2_decoder"), description="module groups that are trained"
    )
    lora: Lora = Field(Lora(), description="low-rank adapters of the language model")
    batch: Count = Field(2, description="images per process and micro-batch")
    accumulation: Count = Field(4, description="micro-batches per optimizer step")
    lr: Positive = Field(1e-5, description="learning rate at its peak")
    lr_sam2_scale: Weight = Field(description="the mask decoder's learning rate as a multiple of lr")
    optimizer: Literal["adamw", "paged_adamw"] = Field(
        "adamw", description="adamw, or paged_adamw (its state moves to CPU memory where the GPU's ends; needs bitsandbytes)"
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "cosine", description="constant, cosine or linear, after the warm-up"
    )
    warmup: Share = Field(0.05, description="share of the steps in which the learning rate rises")
    weight_decay: Weight = Field(0.05, description="AdamW's weight decay")
    clip: Positive = Field(description="largest norm of the gradient; longer ones are scaled down to it")
    loss: LossWeights = Field(description="weights of the losses")
    mask_points: Number = Field(
        12544, description="points of a mask that its loss looks at, chosen by uncertainty; 0: the whole mask"
    )
    max_tiles: Count = Field(12, description="tiles per image in the supervised task; the loops use one")
    caption_len: Count = Field(256, description="longest caption, in tokens")
    checkpoint_activations: bool = Field(True, description="recompute the language model's activations to save memory")
    beta: Weight = Field(description="weight of the auxiliary gradient (loop 2's)")
    surgery: Literal["orthogonal", "pcgrad", "none"] = Field(
        description="take from the auxiliary gradient its part along the primary one: orthogonal, pcgrad (only where they disagree), none"
    )
    ema: Ema = Field(Ema(), description="the teacher")
    validation: Annotated[Validation | None, NONE] = Field(None, description="evaluate a split after every epoch; none: never")
    min_seg_rate: Share = Field(description="stop where the model would say [SEG] in a smaller share of the answers")
    gallery: Number = Field(description="steps at which examples of the loops are kept for the report")
    save_every: Number = Field(description="steps between step checkpoints; 0: only the last step")
    keep: Annotated[Count | None, NONE] = Field(None, description="step checkpoints that stay, the newest; none: all")

    @model_validator(mode="after")
    def _fits(self) -> "TrainSettings":
        if len(set(self.groups)) < len(self.groups):
            raise ValueError("groups: names a group twice")
        if {"seg_row", "embed_head"} <= set(self.groups):
            raise ValueError("groups: names seg_row and embed_head, which contains it; choose one")
        if not self.trained:
            raise ValueError("groups: names only lora, which lora.enabled turns off: nothing would be trained")
        if self.validation is not None and self.epochs is None:
            raise ValueError("validation: evaluates after epochs, so set train.epochs too")
        return self

    @property
    def trained(self) -> tuple[Group, ...]:
        """The groups that are trained."""
        return tuple(group for group in self.groups if group != "lora" or self.lora.enabled)

    def effective_batch(self, processes: int) -> int:
        """Images per optimizer step over all processes."""
        return self.batch * self.accumulation * processes

    def epoch_steps(self, samples: int, processes: int) -> int:
        """Optimizer steps of a pass over `samples` images with expressions."""
        return -(-samples // self.effective_batch(processes))


class LoraSize(Section):
    """A checkpoint's LoRA, where the checkpoint does not say it itself."""

    rank: Count = Field(description="rank of the adapters")
    alpha: Positive = Field(description="scale of the adapters times their rank")


class Convert(Section):
    """A training checkpoint on its base, in the official Hugging Face layout."""

    source: str = Field(description="this run's folder, one of its step checkpoints, or any .pth")
    under: str | None = Field(None, description="a base .pth to put on models/base first")
    groups: (
        Annotated[
            tuple[Literal["vision", "embed_head", "llm", "lora", "proj", "fcs", "sam2_encoder", "sam2_decoder"], ...],
            Field(strict=False, min_length=1),
        ]
        | None
    ) = Field(None, description="groups that a foreign .pth holds; this project's checkpoints say it themselves")
    lora: LoraSize | None = Field(None, description="rank and alpha of a foreign .pth with LoRA")
    precision: Precision = Field(
        description="type of the trained tensors on disk; bf16 halves them and rounds small changes away"
    )
    code: Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$")] = Field(
        description="hub repository whose code reads the export (auto_map)"
    )


class Evaluate(Section):
    """Evaluation of every variant by free generation."""

    seed: Seed = Field(description="random seed")
    precision: Precision = Field("bf16", description="compute type: float32 or bf16")
    four_bit: Parts = Field((), description="parts held in 4 bits (NF4): language, vision, sam; needs bitsandbytes")
    splits: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        (
            "refcoco_val", "refcoco_testA", "refcoco_testB", "refcoco_plus_val", "refcoco_plus_testA", "refcoco_plus_testB",
            "refcocog_val", "refcocog_test",
        ),
        description="splits whose expressions are evaluated, <index>_<part>",
    )  # fmt: skip
    captions: Texts = Field(
        ("refcocog_val",), description="splits whose regions are described, and found again by that description"
    )
    tokens_per_batch: Count = Field(65536, description="tokens of one batch: rows x (image + question + answer)")
    max_new_tokens: Count = Field(256, description="longest answer or description, in tokens")
    max_samples: Annotated[Count | None, NONE] = Field(None, description="images per split; none: all")
    max_texts_per_image: Annotated[Count | None, NONE] = Field(None, description="expressions per image; none: all")

    @field_validator("splits", "captions")
    @classmethod
    def _once(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(splits)) < len(splits):
            raise ValueError("names a split twice")
        return splits

    @property
    def questions(self) -> Questions:
        """What is evaluated."""
        return Questions(
            splits=self.splits, captions=self.captions, max_samples=self.max_samples, max_texts_per_image=self.max_texts_per_image
        )


class Report(Section):
    """Tables, figures and the page."""

    seed: Seed = Field(description="random seed of intervals and galleries")
    bootstrap: Count = Field(description="resamples of the images for the 95 % intervals")
    gallery: Count = Field(description="rows of each gallery in reports/figures")
    examples: Count = Field(description="expressions in reports/report.html, 10 to 30 kB each")


Sources = dict[Name, Source]
OwnSets = dict[Name, Own]
Variants = dict[Name, Groups]
