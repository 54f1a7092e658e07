"""Ref-DAVIS17 (Khoreva et al., ACCV 2018): DAVIS 2017 with the expressions of two annotators, each from the first frame and from the
whole video.

    DAVIS/ImageSets/2017/<split>.txt              names of videos
    DAVIS/JPEGImages/480p/<video>/<frame>.jpg
    DAVIS/Annotations_unsupervised/480p/<video>/<frame>.png
    davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt       lines: <video> <object> "<expression>"

Expressions are numbered as the usual conversion does (wjn922/ReferFormer): of each object, in order of the objects' numbers as texts, four
in a row. Each is a question by itself, as in Sa2VA's results; ReferFormer merges the objects of an annotator into one prediction, which
`MergedScorer` of `ans/evaluation/video_metrics.py` does.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ans.data.clips import Clip, Listed
from ans.data.records import Skipped
from ans.data.video_sources import ref_youtube_vos

ANNOTATORS = (("Davis17_annot1", "utf-8"), ("Davis17_annot1_full_video", "utf-8"))
ANNOTATORS += (("Davis17_annot2", "latin-1"), ("Davis17_annot2_full_video", "latin-1"))
MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
LINE = re.compile(r'(\S+)\s+(\d+)\s+"(.*)"')
PICTURES, MASKS = "JPEGImages/480p", "Annotations_unsupervised/480p"


def read(root: Path, folder: str, split: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of `train` or `val`."""
    base = root / folder
    names = _lines(base / "DAVIS/ImageSets/2017" / f"{split}.txt")
    said = [_expressions(base / "davis_text_annotations" / f"{name}.txt", encoding) for name, encoding in ANNOTATORS]
    for name in names:
        try:
            per_annotator = [one.get(name, []) for one in said]
            if len({len(one) for one in per_annotator}) > 1 or not per_annotator[0]:
                raise ValueError("annotators that do not describe the same objects")
            expressions: dict[str, dict[str, str]] = {}
            for rows in zip(*per_annotator, strict=True):
                for key, text in rows:
                    expressions[str(len(expressions))] = {"exp": text, "obj_id": key}
            frames = sorted(path.stem for path in (base / "DAVIS" / PICTURES / name).glob("*.jpg"))
            ordered = dict(sorted(expressions.items()))
            yield ref_youtube_vos.clip(root, f"{folder}/DAVIS", Listed(name, tuple(frames), ordered), split, PICTURES, MASKS)
        except ValueError as error:
            yield Skipped(f"{split}/{name}", str(error))


def _lines(path: Path, encoding: str = "utf-8") -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return [line.strip() for line in path.read_text(encoding=encoding).splitlines() if line.strip()]


def _expressions(path: Path, encoding: str) -> dict[str, list[tuple[str, str]]]:
    """Return video -> (object, expression), in order of the objects. Raises `ValueError` naming the line."""
    found: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(_lines(path, encoding), start=1):
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f'{path}:{number}: expected `video object "expression"`, found {line!r:.80}')
        found.setdefault(MISSPELT.get(match[1], match[1]), []).append((match[2], match[3]))
    return {video: sorted(rows, key=lambda row: row[0]) for video, rows in found.items()}
