"""What a mask decoder is, with the image encoder that it reads from. Everything that differs between decoders is behind these two
classes.

`MaskDecoder` is what a model folder's `config.json` says: sizes, pixels, targets, names. `MaskNetwork` is the modules: image features
once, then one mask for every prompt vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ans.model.keys import KeyTable
from ans.model.plugs import Plug

Levels = tuple[Tensor, ...]
"""Feature maps of B images, each (B, channels, height, width)."""


@dataclass(frozen=True)
class Masks:
    """One mask per prompt. `low_res` (N, S/4, S/4) logits of the chosen mask; the K `candidates` (N, K, S/4, S/4) and their
    predicted `ious` (N, K); `object_score` (N, 1) logits, which Sa2VA does not apply to images, None where there are none."""

    low_res: Tensor
    candidates: Tensor
    ious: Tensor
    object_score: Tensor | None

    @classmethod
    def best(cls, candidates: Tensor, ious: Tensor, object_score: Tensor | None) -> Self:
        """Choose of each prompt the candidate whose predicted IoU is highest."""
        best = ious.argmax(-1)
        return cls(candidates[torch.arange(len(best), device=best.device), best], candidates, ious, object_score)


Propagation = Literal["official", "original_decoder"]
"""How a memory carries masks from the prompted frames of a video to the others: with the fine-tuned decoder throughout (Sa2VA), or with
the decoder as it was before fine-tuning, which is given the fine-tuned one's masks (Sa2VA-i)."""


class Tracker(ABC):
    """N objects of one video. First some frames are prompted, in their order, then all others follow, from the first to the last; what
    is kept does not grow with the video."""

    @abstractmethod
    def prompt(self, frame: int, levels: Levels, vectors: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits (N, S/4, S/4) of the objects that `vectors` (N, D) name on frame number `frame`, whose encoder maps are
        `levels`, of one image of `size` (height, width)."""

    @abstractmethod
    def follow(self, frame: int, levels: Levels) -> Tensor:
        """Return logits (N, S/4, S/4) on a frame that was not prompted, from what is remembered."""


class MaskNetwork(nn.Module, ABC):
    """The modules: pixels to image features to masks."""

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The frozen image encoder."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What pixels have to be in."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Levels:
        """Map (B, 3, S, S) normalised pixels to the encoder's maps. Depends on no tensor that is ever fine-tuned."""

    @abstractmethod
    def project(self, levels: Levels) -> Levels:
        """Map the encoder's maps to what the mask decoder reads."""

    @abstractmethod
    def decode(self, features: Levels, image_index: Tensor, prompts: Tensor) -> Masks:
        """Return masks for `prompts` (N, D), the n-th of them on image `image_index[n]` of the projected features."""

    def decode_at(self, features: Levels, image_index: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Masks:
        """Return masks of what is at `points` (N, P, 2), with `labels` (N, P) 1 on the object and 0 beside it, and in `boxes` (N, 4); P
        is 0 where there are boxes alone. Coordinates are shares of the network's square, (x, y) from its upper left corner. A single
        point may mean an object or a part of it: of several candidates the one with the highest predicted IoU is chosen.

        Raises `ValueError` for a decoder that takes none.
        """
        raise ValueError("this model's mask decoder takes no points and no boxes; name the object in words")

    def expect(self, names: Iterable[str]) -> None:
        """Make the modules that some model folders have and others have not; `names` are those of the folder's tensors, inside this
        network."""

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        """Take the mask decoder as it was before fine-tuning from a model folder's tensors, or from the released weights.

        Raises `ValueError` for a decoder that has no use for one, and for tensors that do not fit.
        """
        raise ValueError("only a mask decoder with a memory has use for its weights before fine-tuning; this one has none")

    @property
    def propagations(self) -> tuple[Propagation, ...]:
        """How its memory can carry masks through a video, the preferred way first; none without a memory."""
        return ()

    def tracker(self, propagation: Propagation) -> Tracker:
        """Return a new memory, for one of `propagations`."""
        raise NotImplementedError


class MaskDecoder(Plug):
    """A mask decoder as `config.json` describes it; no weights. A file of `ans/model/decoders` has one, `MaskDecoder`."""

    title: ClassVar[str]
    """What messages call it."""

    section: ClassVar[str]
    """The section of `config.json` that describes it."""

    released: ClassVar[Mapping[str, Any]]
    """What holds where `config.json` has no such section: the released size."""

    parts: ClassVar[tuple[str, ...]]
    """The modules that the released weights hold tensors of, as HF prefixes."""

    keys: ClassVar[KeyTable]
    """Its tensors' names, with the spaces `model` and `pth` at least, and one under the file's own name for the released weights."""

    @property
    def follows(self) -> bool:
        """Whether it has a memory that carries masks from frame to frame of a video."""
        return False

    @classmethod
    @abstractmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Return the decoder that the section describes. Raises `ValueError` naming a key that is not supported."""

    @property
    def name(self) -> str:
        """What a model card calls this one."""
        return self.title

    @property
    @abstractmethod
    def width(self) -> int:
        """D: of the vectors that prompt it."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Of its logits, in cells; called S/4, as it is at full size."""

    @abstractmethod
    def pixels(self, image: Image.Image) -> Tensor:
        """Return an RGB image as its image encoder takes it: (3, S, S) normalised."""

    @abstractmethod
    def soft_target(self, mask: Tensor) -> Tensor:
        """Map (h, w) mask in {0, 1} to (S/4, S/4) share of each cell of the logits that it covers."""

    @abstractmethod
    def image_share(self, height: int, width: int) -> tuple[float, float]:
        """Return (x, y): how far from the left and from the top the logits show an image of this size; the rest is padding."""

    @abstractmethod
    def upscale(self, low_res: Tensor, size: tuple[int, int]) -> Tensor:
        """Map logits (N, S/4, S/4) to (N, h, w), at the image's own size."""

    @abstractmethod
    def build(self) -> MaskNetwork:
        """Return the modules with random weights, on the device that is the default."""

    @property
    def tied(self) -> dict[str, str]:
        """HF name of each tensor that may be in no file -> that of the tensor that it equals."""
        return {}

    @classmethod
    def marked_by(cls, names: Iterable[str]) -> bool:
        """Return whether tensors of these HF names are this decoder's, for folders whose `config.json` has no section of any."""
        return False

    @classmethod
    def hf_names(cls, names: Iterable[str]) -> dict[str, str]:
        """Return name of each tensor in a model folder -> its HF name here, where other projects' folders name them otherwise."""
        return {name: name for name in names}

    @classmethod
    def check_released(cls, names: Iterable[str]) -> Mapping[str, Any]:
        """Return what the section has to say beside `released` for released weights whose tensors have these HF names.

        Raises `ValueError` where they are not such weights.
        """
        names = list(names)
        for part in cls.parts:
            if not any(name.startswith(part) for name in names):
                module = part.rstrip(".").rpartition(".")[2]
                raise ValueError(f"holds no tensor of {module}; it is not a {cls.title} checkpoint as released")
        return {}


def ambiguous(points: Tensor, boxes: Tensor | None) -> bool:
    """Return whether SAM and SAM2 should be asked for several candidates, as both packages recommend: for a single point."""
    return boxes is None and points.shape[1] == 1


def wide(logits: Tensor) -> Tensor:
    """Return (N, 1, h, w) in float32 at least; float64 stays what it is."""
    return logits[:, None].to(torch.promote_types(logits.dtype, torch.float32))


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits (N, 1, h, w), bilinear to another size."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
