"""The section `train` of `params.yaml`, but for the settings of the tasks, which are in their files (`ans/tasks`)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ans.config.fields import Count, List, Name, NonEmpty, Number, Positive, Precision, Section, Seed, Share, Weight
from ans.config.scope import Scope
from ans.groups import Group, Part

Surgery = Literal["orthogonal", "pcgrad", "none"]


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
        """Return what the product of the adapters' matrices is multiplied by."""
        return self.alpha / self.rank


class Ema(Section):
    """The teacher: an exponential moving average of the trained tensors."""

    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="share of the average that is kept per step; 0: the teacher is the student"
    )
    warmup: bool = Field(False, description="true: the decay grows from 0.1, as in TensorFlow")


class ValidationSettings(Section):
    """Evaluation of a split while training goes on; the best tensors are kept, and training stops after `patience` evaluations
    without a better one."""

    split: str = Field(
        description="split that is evaluated, <index>_<part>, or <set>_video of evaluate.videos: one for tuning, since the best step is "
        "chosen by it"
    )
    every: Count | None = Field(None, description="steps between two evaluations; none: an epoch")
    metric: Literal["ciou", "miou", "box_giou", "p50", "jf"] = Field(
        "ciou", description="metric by which the best one is chosen; of videos jf"
    )
    patience: Count = Field(10, description="evaluations without a better one after which training stops")
    save_best_only: bool = Field(True, description="false: keep the last step's tensors too")
    max_samples: Count | None = Field(None, description="images (clips) of the split; none: all")
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
        description="groups of parameters that are trained: lora, seg_row, embed_head, proj, fcs, sam2_decoder, memory (ans/groups.py)",
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
    loss: LossWeights = Field(LossWeights(), description="weights of the loss terms that all tasks share")
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
        """Return images per optimizer step over all processes."""
        return self.batch * self.accumulation * processes

    def epoch_steps(self, samples: int, processes: int) -> int:
        """Return optimizer steps of a pass over `samples` images with expressions."""
        return -(-samples // self.effective_batch(processes))
