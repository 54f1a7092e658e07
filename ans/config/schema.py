"""The sections of `params.yaml`, but for `train`, which is in `ans/config/training.py`. A setting is told once: its type, range, unit,
default and documentation. `python -m ans config` prints them with the values in force.
"""

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
    Precision,
    Repository,
    Section,
    Seed,
    Sha256,
    Share,
    Text,
    Weight,
    owner_and_name,
)
from ans.config.scope import Scope
from ans.groups import Group, Part, StoredGroup

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
    main_address: Text = Field(description="address of machine 0, as the other machines see it; with slurm it is determined")
    main_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        description="a free port of machine 0, used with several machines; with slurm one is chosen"
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
    shard_frozen: bool = Field(
        False,
        description="training: each process holds a share of the frozen layers, for models beyond one card; not with train.four_bit",
    )


class Source(Section):
    """A published data set."""

    reader: str = Field(description="module of ans/data/sources that reads the set's layout")
    folder: Folder = Field(description="folder below paths.root")
    max_images: Count | None = Field(None, description="index only the first N images; none: all")
    max_samples: Count | None = Field(None, description="index only the first N masks; none: all")

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


class LearntVideos(VideoFolder):
    """A set of videos that is learnt from, and how often."""

    repeats: Weight = Field(1.0, description="how many times each clip comes per epoch")


class VideoSet(VideoFolder):
    """A set of videos with expressions that is evaluated, and how."""

    # auto, and not null: for a setting that may be null, `none` means that
    propagation: Literal["auto", "original_decoder", "official", "none", "images"] = Field(
        "auto",
        description="how masks come from the frames that are read to the others; auto: the first way that the model can do; images: they "
        "do not, every frame is an image of its own",
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

    seed: Seed = Field(7, description="random seed of the world")
    train_images: Count = Field(25, description="images with training expressions; few, as a user's own data has")
    val_images: Count = Field(100, description="images of the val splits")
    test_images: Count = Field(50, description="images of each test split (testA, testB, RefCOCOg's test)")
    sa1b_images: Count = Field(300, description="images in SA-1B's layout: masks without text")
    sav_pairs: Count = Field(150, description="pairs of frames of one moving object, in SA-V's layout")
    openimages_images: Count = Field(150, description="images in Open Images' layout")
    describe_images: Count = Field(200, description="images with described regions, in Describe Anything's layout")
    reasonseg_images: Count = Field(120, description="training images in ReasonSeg's layout; half as many each for val and test")
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
        1.0, description="0: images like those the tiny base was trained on; 1: textured backgrounds and noise, new to it"
    )


class IndexSettings(Section):
    """Reading the data sets."""

    max_bad_fraction: Share = Field(description="largest share of records that may be unreadable; with more the stage stops")
    decode: bool = Field(
        False,
        description="true: open every image, as training does, so that damaged ones are found here (takes as long as an epoch)",
    )
    scheduler: Text | None = Field(
        None, description="address of a Dask scheduler (tcp://host:8786) whose workers read; none: the cores of this machine"
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


class LoraSize(Section):
    """A checkpoint's LoRA, where the checkpoint does not say it itself."""

    rank: Count = Field(description="rank of the adapters")
    alpha: Positive = Field(description="the adapters' product is multiplied by alpha / rank")
    rslora: bool | None = Field(
        None,
        description="true: by alpha / sqrt(rank) instead (PEFT's use_rslora); to be said where the .pth has no configuration",
    )


class Convert(Section):
    """A training checkpoint on its base, in the official Hugging Face layout."""

    source: Text = Field(description="folder of this run's checkpoint, one of its step checkpoints, or any .pth")
    under: Text | None = Field(None, description="a .pth that is put on models/base first")
    groups: NonEmpty[StoredGroup] | None = Field(
        None, description="groups that a foreign .pth holds; this project's checkpoints say it themselves"
    )
    lora: LoraSize | None = Field(None, description="size of a foreign .pth's LoRA: {rank: 128, alpha: 256, rslora: false}")
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
    grounded: List[str] = Field(
        (), description="splits of reader grand_f: images described with a mask for each phrase (docs/evaluation.md)"
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
