"""The sections of `params.yaml`. A setting is told once, here (those of a task in its file below `ans/tasks`): its type, range, unit,
default and documentation. `python -m ans config` prints them with the values in force.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ans.config.fields import (
    Commit,
    Count,
    FileName,
    Folder,
    List,
    Name,
    NonEmpty,
    Number,
    Positive,
    Repository,
    Section,
    Seed,
    Sha256,
    Share,
    Text,
    Weight,
    owner_and_name,
)
from ans.groups import Group, Part, StoredGroup

Precision = Literal["float32", "bf16"]
Surgery = Literal["orthogonal", "pcgrad", "none"]

SUBSET = "sa1b_subset"
"""The index of SA-1B's images that are used; the index `sa1b` only lists all of them."""

READERS = Path(__file__).parents[1] / "data" / "sources"
VIDEO_READERS = READERS.with_name("video_sources")


class Paths(Section):
    root: Text = Field(description="folder of the published data sets; data/world is the synthetic world")


class Launch(Section):
    """How a run is started. Not tracked by DVC: 1 and 8 GPUs are the same experiment."""

    processes: Count = Field(description="processes per machine, one for each GPU")
    machines: Count = Field(description="machines that take part")
    scheduler: Literal["none", "slurm"] = Field(
        description="slurm: start the machines' processes by srun, within a job; none: start those of this machine"
    )
    main_address: Text = Field(description="address of machine 0, as the other machines see it; with slurm it is found")
    main_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        description="a free port of machine 0, used with several machines; with slurm one is found"
    )
    workers: Number = Field(
        description="data-loading processes per training process; 0: the training process loads its data itself"
    )
    log_with: List[Literal["dvclive", "tensorboard", "trackio", "wandb"]] = Field(
        ("dvclive",),
        description="where curves and pictures are shown while the training runs, besides reports/train/plots: dvclive, tensorboard, "
        "trackio, wandb; the last three are packages to install",
    )
    save_state_seconds: Weight = Field(
        description="seconds between saved states (longer if saving would take over 2 % of the time); a killed training loses at most "
        "the work since the last one"
    )
    feature_cache_gb: Weight = Field(
        description="GB on disk for the frozen encoders' features, shared by epochs and variants; 0: no cache"
    )


class Source(Section):
    """A published data set."""

    reader: str = Field(description="module of ans/data/sources that reads the set's layout")
    folder: Folder = Field(description="folder below paths.root")
    max_images: Count | None = Field(None, description="index the first so many images; none: all")
    max_samples: Count | None = Field(None, description="index the first so many masks; none: all")

    @field_validator("reader")
    @classmethod
    def _there(cls, name: str) -> str:
        readers = sorted(path.stem for path in READERS.glob("*.py") if path.stem not in ("__init__", "common", "own"))
        if name not in readers:
            raise ValueError(f"no reader named {name!r}; there are {', '.join(readers)}")
        return name


class VideoFolder(Section):
    """A set of videos with expressions."""

    reader: str = Field(description="module of ans/data/video_sources that reads the set's layout")
    folder: Folder = Field(description="folder below paths.root")
    split: FileName = Field(description="part of the set, as its files call it")

    @field_validator("reader")
    @classmethod
    def _there(cls, name: str) -> str:
        readers = sorted(path.stem for path in VIDEO_READERS.glob("*.py") if path.stem != "__init__")
        if name not in readers:
            raise ValueError(f"no reader named {name!r}; there are {', '.join(readers)}")
        return name


class VideoSet(VideoFolder):
    """A set of videos with expressions that is evaluated, and how."""

    # auto, and not null: for a setting that may be null, `none` means that
    propagation: Literal["auto", "original_decoder", "official", "none"] = Field(
        "auto",
        description="how masks come from the frames that are read to the others; auto: the first way that the model can do",
    )
    choice: Literal["auto", "first", "uniform"] = Field(
        "auto", description="which frames are read; auto: first with official, else uniform"
    )
    frames_read: Count = Field(5, description="frames that the language model reads")


class Own(Section):
    """A folder of your own data (docs/your-data.md)."""

    folder: Folder = Field(description="folder below paths.root")

    reader: ClassVar[str] = "own"
    max_images: ClassVar[None] = None
    max_samples: ClassVar[None] = None


class World(Section):
    """The synthetic world that the pipeline runs on by default."""

    seed: Seed = Field(description="random seed of the world")
    train_images: Count = Field(description="images with training expressions; few, as a user's own data has")
    val_images: Count = Field(description="images of the val splits")
    test_images: Count = Field(description="images of each test split (testA, testB, RefCOCOg's test)")
    sa1b_images: Count = Field(description="images in SA-1B's layout: masks without text")
    sav_pairs: Count = Field(description="pairs of frames of one moving object, in SA-V's layout")
    openimages_images: Count = Field(description="images in Open Images' layout")
    describe_images: Count = Field(description="images with described regions, in Describe Anything's layout")
    reasonseg_images: Count = Field(description="training images in ReasonSeg's layout; half as many each for val and test")
    grounded_images: Number = Field(
        0, description="training images with grounded captions, below glamm_data/; half as many for val, test"
    )
    videos: Number = Field(0, description="films with expressions in each layout of videos, below videos/ (docs/video.md)")
    captioned_images: Number = Field(
        0, description="for studies: images of masks with true captions, and again with wrong ones, below captioned/"
    )
    new_colours: bool = Field(
        False,
        description="true: red, green and orange are drawn in colours new to the tiny base, and colour alone tells objects apart",
    )
    shift: Share = Field(
        description="0: images like those the tiny base was trained on; 1: textured backgrounds and noise, new to it"
    )


class IndexSettings(Section):
    """Reading the data sets."""

    max_bad_fraction: Share = Field(description="largest share of records that may be unreadable; with more the stage stops")
    decode: bool = Field(
        False,
        description="true: open every image, as training does, so that damaged ones are found here (takes as long as an epoch)",
    )


class SubsetSa1b(Section):
    """Which images of SA-1B are used, and which of their masks."""

    images: Count = Field(10000, description="images of SA-1B that are used")
    order: Literal["name", "seed"] = Field("name", description="name: the first in name order; seed: a random sample")
    seed: Seed = Field(0, description="random seed of the sample")
    min_area_share: Share = Field(0.0, description="leave out masks that cover a smaller share of the image")
    max_area_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="leave out masks that cover a larger share of the image"
    )
    min_predicted_iou: Annotated[float, Field(ge=0, le=2)] = Field(
        0.0, description="leave out masks with a lower predicted_iou (SA-1B's own rating)"
    )
    min_stability_score: Share = Field(0.0, description="leave out masks with a lower stability_score (SA-1B's own rating)")
    max_masks: Count | None = Field(None, description="most masks per image, the first in the file; none: all")

    @model_validator(mode="after")
    def _areas(self) -> "SubsetSa1b":
        if self.min_area_share > self.max_area_share:
            raise ValueError("min_area_share: must be at most max_area_share")
        return self


class MaskEncoderWeights(Section):
    """The released file of the mask decoder, its image encoder included (SAM2 or SAM), to put a new base together with a
    vision-language model."""

    location: Text = Field(description="address or path of the file")
    sha256: Sha256 | Literal[""] = Field("", description="its sha256; the stage stops and asks until it is set")


class Weights(Section):
    """The base: where its weights come from."""

    source: Literal["embedded", "hub", "url", "path"] = Field(
        description="where it comes from: embedded (in the repository), hub, url or path"
    )
    location: Text = Field(description="folder, owner/name on the hub, or address")
    revision: Commit | None = Field(
        None, description="commit on the hub that you trust, 40 digits; the stage stops and asks until it is set"
    )
    sha256: dict[FileName, Sha256] = Field({}, description="file name -> sha256; the files named here are checked")
    sam2: MaskEncoderWeights | None = Field(
        None, description="weights of the mask decoder, where the base is assembled from two models"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Weights":
        if self.revision is not None and self.source != "hub":
            raise ValueError(f"revision: only source hub has revisions; must be none for {self.source}")
        if self.source == "hub":
            try:
                owner_and_name(self.location)
            except ValueError as error:
                raise ValueError(f"location: {error}, found {self.location!r}") from None
        if self.source == "url" and not self.location.startswith(("http://", "https://")):
            raise ValueError(f"location: expected an http(s) address, found {self.location!r}")
        return self


class LossWeights(Section):
    """Weights of the losses that all tasks share."""

    mask: Weight = Field(2.0, description="weight of the mask's cross-entropy")
    dice: Weight = Field(0.5, description="weight of the mask's Dice loss")
    language: Weight = Field(1.0, description="weight of the language loss on answers and captions")
    iou: Weight = Field(0.0, description="weight of 1 - soft IoU of the mask")
    lisa_dice: bool = Field(False, description="true: the Dice loss as LISA computes it")

    @model_validator(mode="after")
    def _some(self) -> "LossWeights":
        if not self.mask + self.dice + self.iou:
            raise ValueError("mask: mask, dice and iou are all 0, so masks would not be learnt")
        return self


class Lora(Section):
    """Low-rank adapters of the language model."""

    enabled: bool = Field(True, description="false: group lora is not trained, whatever `groups` says")
    rank: Count = Field(128, description="rank of the adapters")
    alpha: Positive = Field(256.0, description="the adapters' product is multiplied by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="dropout on the adapters' input")
    targets: NonEmpty[Name] | None = Field(
        None, description="linear layers that are adapted, such as q_proj; none: those of the family's official recipe"
    )

    def scale(self) -> float:
        """What the product of the adapters' matrices is multiplied by."""
        return self.alpha / self.rank


class Ema(Section):
    """The teacher: an exponential moving average of the trained tensors."""

    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="share of the average that is kept per step; 0: the teacher is the student"
    )
    warmup: bool = Field(False, description="true: the decay grows from 0.1, as in TensorFlow")


@dataclass(frozen=True)
class Scope:
    """What an evaluation asks. Made by `Evaluate.scope` and `ValidationSettings.scope`, not read from a file."""

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


class ValidationSettings(Section):
    """Evaluation of a split while training goes on; the best tensors are kept, and training stops after `patience` evaluations
    without a better one."""

    split: str = Field(description="split that is evaluated, <index>_<part>: one for tuning, since the best step is chosen by it")
    every: Count | None = Field(None, description="steps between two evaluations; none: an epoch")
    metric: Literal["ciou", "miou", "box_giou", "p50"] = Field("ciou", description="metric by which the best one is chosen")
    patience: Count = Field(10, description="evaluations without a better one after which training stops")
    save_best_only: bool = Field(True, description="false: keep the last step's tensors too")
    max_samples: Count | None = Field(None, description="images of the split; none: all")
    max_new_tokens: Count = Field(32, description="longest answer, in tokens")
    tokens_per_batch: Count = Field(8192, description="tokens of one batch: rows x (image + question + answer)")

    @property
    def scope(self) -> Scope:
        """What is asked: every expression of the split."""
        return Scope(splits=(self.split,), max_samples=self.max_samples)


class TrainSettings(Section):
    """Training. The settings of each task are a section of their own: `train.<task>` (ans/tasks/<task>.py)."""

    seed: Seed = Field(42, description="random seed of sample order, LoRA's initial values, dropout and noise")
    steps: Count = Field(1500, description="optimizer steps")
    epochs: Count | None = Field(
        None, description="passes over the samples of the only primary task, in place of steps; none: steps count"
    )
    precision: Precision = Field(
        "bf16", description="type of the computation: float32 or bf16; trained tensors are float32 in any case"
    )
    four_bit: List[Part] = Field((), description="parts held in 4 bits (NF4, needs bitsandbytes): language, vision, sam")
    groups: NonEmpty[Group] = Field(
        ("lora", "proj", "fcs", "sam2_decoder"),
        description="groups of parameters that are trained: lora, seg_row, embed_head, proj, fcs, sam2_decoder (ans/groups.py)",
    )
    lora: Lora = Field(Lora(), description="low-rank adapters of the language model's linear layers")
    batch: Count = Field(2, description="images per process and micro-batch")
    accumulation: Count = Field(
        4, description="micro-batches per optimizer step; effective batch = batch x accumulation x processes"
    )
    lr: Annotated[float, Field(gt=0, le=1)] = Field(1e-5, description="peak learning rate of all groups but the mask decoder")
    lr_sam2_scale: Weight = Field(1.0, description="learning rate of the mask decoder, as a multiple of lr")
    optimizer: Literal["adamw", "paged_adamw"] = Field(
        "adamw", description="adamw, or paged_adamw (moves its state to CPU memory when the GPU is full; needs bitsandbytes)"
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "cosine", description="learning rate after the warm-up: constant, cosine or linear"
    )
    warmup: Share = Field(0.05, description="share of the steps over which the learning rate rises to its peak")
    weight_decay: Weight = Field(0.05, description="AdamW's weight decay: share of a value, times lr, that is taken off per step")
    clip: Positive = Field(1.0, description="largest gradient norm; a longer gradient is scaled down to it")
    loss: LossWeights = Field(
        LossWeights(),
        description="weights of the loss terms: the mask's cross-entropy and Dice, language (answers and captions), 1 - soft IoU; "
        "lisa_dice: Dice as LISA computes it",
    )
    mask_points: Number = Field(12544, description="pixels of a mask that its loss samples, mostly uncertain ones; 0: all pixels")
    max_tiles: Count = Field(12, description="most tiles per image in task referring; the loops use one")
    caption_len: Count = Field(256, description="longest caption, generated or learnt, in tokens")
    checkpoint_activations: bool = Field(True, description="true: recompute the language model's activations, to save memory")
    beta: Weight = Field(0.5, description="weight of the auxiliary gradient (loop 2's); 0: it has no effect")
    surgery: Surgery = Field(
        "orthogonal",
        description="what the auxiliary gradient loses: orthogonal (its part along the primary one), pcgrad (the same, where the two "
        "disagree), none",
    )
    ema: Ema = Field(Ema(), description="the teacher: an exponential moving average of the trained tensors")
    validation: ValidationSettings | None = Field(
        None,
        description="evaluation of a split as training goes, such as {split: refcoco_val, every: 100, max_samples: 200}; none: never",
    )
    min_seg_rate: Share = Field(
        0.5,
        description="the run stops when [SEG] has a probability of 0.1 or more in a smaller share of the answers (mean of 20 steps)",
    )
    gallery: Number = Field(4, description="number of steps at which examples of the tasks are kept for the report")
    save_every: Number = Field(0, description="steps between step checkpoints; 0: only the last step")
    keep: Count | None = Field(None, description="step checkpoints that are kept, the newest; none: all")

    @model_validator(mode="after")
    def _fits(self) -> "TrainSettings":
        if {"seg_row", "embed_head"} <= set(self.groups):
            raise ValueError("groups: names seg_row and embed_head, which contains it; choose one")
        if not self.trained:
            raise ValueError("groups: names only lora, which lora.enabled turns off: nothing would be trained")
        if self.validation is not None and self.validation.every is None and self.epochs is None:
            raise ValueError("validation: evaluates after epochs; set validation.every (steps), or train.epochs")
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
    alpha: Positive = Field(description="the adapters' product is multiplied by alpha / rank")


class Convert(Section):
    """A training checkpoint on its base, in the official Hugging Face layout."""

    source: Text = Field(description="folder of this run's checkpoint, one of its step checkpoints, or any .pth")
    under: Text | None = Field(None, description="a .pth that is put on models/base first")
    groups: NonEmpty[StoredGroup] | None = Field(
        None, description="groups that a foreign .pth holds; this project's checkpoints say it themselves"
    )
    lora: LoraSize | None = Field(None, description="rank and alpha of a foreign .pth with LoRA: {rank: 128, alpha: 256}")
    precision: Precision = Field(
        description="type of the trained tensors on disk; bf16 takes half the space and rounds small changes away"
    )
    code: Repository | None = Field(
        None, description="hub repository with the code that loads the export (auto_map); none: a release of the model's family"
    )


class Evaluate(Section):
    """Evaluation of every variant by free generation."""

    precision: Precision = Field("bf16", description="type of the computation: float32 or bf16")
    four_bit: List[Part] = Field((), description="parts held in 4 bits (NF4, needs bitsandbytes): language, vision, sam")
    splits: NonEmpty[str] = Field(
        (
            "refcoco_val", "refcoco_testA", "refcoco_testB", "refcoco_plus_val", "refcoco_plus_testA", "refcoco_plus_testB",
            "refcocog_val", "refcocog_test",
        ),
        description="splits whose expressions are evaluated, <index>_<part>",
    )  # fmt: skip
    captions: List[str] = Field(
        ("refcocog_val",), description="splits whose regions are described, and segmented again by that description"
    )
    tokens_per_batch: Count = Field(65536, description="tokens of one batch: rows x (image + question + answer)")
    max_new_tokens: Count = Field(256, description="longest answer or description, in tokens")
    max_samples: Count | None = Field(None, description="images per split; none: all")
    max_texts_per_image: Count | None = Field(None, description="expressions per image; none: all")
    videos: dict[Name, VideoSet] = Field(
        {}, description="sets of videos, by a name: {mevis: {reader: mevis, folder: mevis, split: valid_u}} (docs/video.md)"
    )

    @property
    def scope(self) -> Scope:
        """What is evaluated."""
        return Scope(
            splits=self.splits, captions=self.captions, max_samples=self.max_samples, max_texts_per_image=self.max_texts_per_image
        )


class Report(Section):
    """Tables, figures and the page."""

    seed: Seed = Field(description="random seed of intervals and galleries")
    bootstrap: Count = Field(description="resamples of the images for the 95 % intervals")
    gallery: Count = Field(description="rows of each gallery in reports/figures")
    examples: Count = Field(description="expressions in reports/report.html, 10 to 30 kB each")


Sources = Annotated[dict[Name, Source], Field(description="the published data sets, by the name of their index")]
OwnSets = Annotated[
    dict[Name, Own],
    Field(description="your own data, by a name of your choice: {kitchen: {folder: kitchen}} (docs/your-data.md)"),
]
Variants = Annotated[
    dict[Name, List[Group]],
    Field(
        description="name -> groups taken from the training run, the rest is the base's; base: none, full: all that were trained"
    ),
]
