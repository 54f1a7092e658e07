"""Samples of masks without text: objects to describe in one image, and to segment in the same one, in a second frame, or in several
frames of a video."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ans.data.clips import Clip, draw_frames, open_frames
from ans.data.matching import record_image, region_mask
from ans.data.samples import Regions


@dataclass(frozen=True)
class SampleObject:
    """`mask` (h, w): in the described image. `targets`: in each of the sample's `frames`. `text`: the data's own, or "". `others`: the
    masks of other objects in the one frame as `soft` made them, where those were asked for."""

    mask: np.ndarray
    targets: list[np.ndarray]
    text: str = ""
    others: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """`described`: the image of locator `path`. `opened`: the images that are segmented, each once, and their `locators`; `frames`: their
    numbers, in the order in which they were drawn."""

    source: str
    path: str
    described: Image.Image
    opened: list[Image.Image]
    locators: list[str]
    frames: list[int]
    objects: list[SampleObject]

    @property
    def apart(self) -> bool:
        """Whether the described image is none of those that are segmented."""
        return all(image is not self.described for image in self.opened)


class OfImages:
    """One sample is a region, with up to `objects` - 1 others of its image. `soft`: each knows the masks of all others, each made
    into what this gives: at full size a hundred of them would fill the memory."""

    def __init__(self, root: Path, regions: Regions, objects: int, soft: Callable[[Tensor], Tensor] | None = None) -> None:
        self.root, self.regions, self.objects, self.soft = root, regions, objects, soft
        self.name, self.title, self.count = regions.name, regions.name, regions.count

    def open(self, number: int, rng: np.random.Generator) -> Sample:
        """Open a sample. Raises as `record_image` and `region_mask`."""
        record, region = self.regions.sample(number)
        described = record_image(self.root, record)
        two_frames = bool(record.second and region.second_counts)
        segmented = record_image(self.root, record, second=True) if two_frames else described
        others = [o for o in self.regions.usable(record) if o != region and bool(o.second_counts) == two_frames]
        picked = [others[i] for i in rng.permutation(len(others))[: self.objects - 1]]
        known = [self.soft(torch.from_numpy(region_mask(record, o, two_frames))) for o in (region, *others)] if self.soft else []
        objects = []
        for one in (region, *picked):
            mask = region_mask(record, one)
            target = region_mask(record, one, second=True) if two_frames else mask
            masks = [known[number] for number, o in enumerate((region, *others)) if o != one] if self.soft else []
            objects.append(SampleObject(mask, [target], one.expressions[0].sent if one.expressions else "", masks))
        locator = record.second if two_frames else record.path
        return Sample(self.name, record.path, described, [segmented], [locator], [0], objects)


class OfVideos:
    """One sample is an object of a clip (a masklet), described in a frame in which it is seen and segmented in `frames` others."""

    def __init__(self, root: Path, name: str, clips: list[Clip], frames: int) -> None:
        self.root, self.name, self.clips, self.frames = root, name, clips, frames
        self.masklets = [(clip, key) for clip in clips for key in seen_objects(clip)]
        self.title, self.count = f"{name} (masklets)", len(self.masklets)

    def open(self, number: int, rng: np.random.Generator) -> Sample:
        """Open a sample. Raises as `open_frames`."""
        clip, key = self.masklets[number]
        seen = [frame for frame, counts in enumerate(clip.masks[key]) if counts]
        at = seen[rng.integers(len(seen))]
        others = [frame for frame in range(len(clip.frames)) if frame != at] or [at]
        drawn = [others[i] for i in draw_frames(len(others), self.frames, rng)]
        opened = open_frames(self.root, clip, [at, *drawn])
        order = list(dict.fromkeys(drawn))
        one = SampleObject(clip.mask(key, at), [clip.mask(key, frame) for frame in drawn])
        images, locators = [opened[frame] for frame in order], [clip.frames[frame] for frame in order]
        return Sample(self.name, clip.frames[at], opened[at], images, locators, [order.index(frame) for frame in drawn], [one])


def seen_objects(clip: Clip) -> list[str]:
    """Return the objects of a clip that are seen in some frame."""
    return [key for key, rows in clip.masks.items() if any(rows)]
