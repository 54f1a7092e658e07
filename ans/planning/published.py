"""Where the published data sets are found and how large they are, as their publishers say it.

Of these, the size of COCO's archive was looked up (13.5 GB, 13,510,573,713 bytes); the rest was written down and not looked up again.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """`size`: in what its publisher counts, GB where that is known. `coco`: whether its images are those of COCO."""

    link: str
    size: str
    coco: bool = False


COCO = Published("http://images.cocodataset.org/zips/train2014.zip", "13.5 GB")
"""The images of the RefCOCO sets, train2014."""


PUBLISHED = {
    "refcoco": Published("https://github.com/lichengunc/refer", "annotations only", coco=True),
    "refcoco_m": Published("https://huggingface.co/datasets/moondream/refcoco-m", "0.6 GB", coco=True),
    "grand_f": Published(
        "https://huggingface.co/datasets/MBZUAI/GranD-f", "annotations; its images are linked by GLaMM's docs/datasets.md"
    ),
    "reason_seg": Published("https://github.com/dvlab-research/LISA#dataset", "1,218 images"),
    "sa1b": Published(
        "https://ai.meta.com/datasets/segment-anything-downloads/",
        "1,000 tars of 10 to 11 GB; one alone has 11,186 images",
    ),
    "sav": Published(
        "https://ai.meta.com/datasets/segment-anything-video-downloads/",
        "pairs of frames made of SA-V, which are not published themselves; with the videos, name sav_video in train.loop1.sources",
    ),
    "sav_video": Published(
        "https://ai.meta.com/datasets/segment-anything-video-downloads/", "50,583 videos in 56 tars, the first of them 8 GB"
    ),
    "open_images": Published(
        "https://storage.googleapis.com/openimages/web/download_v7.html",
        "1,743,042 training images, 2.8 million masks; only images with masks are needed",
    ),
    "describe_anything": Published(
        "https://huggingface.co/datasets/nvidia/describe-anything-dataset", "about 226,000 images and 684,000 regions, and SA-V's"
    ),
}
"""Reader -> where its data is."""
