"""The adapter: `--model ans --model_args pretrained=models/variants/full`. It answers tasks of `ans_lmms_eval.task`."""

import json
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from pycocotools import mask as coco
from tqdm import tqdm

from ans import Segmenter


class Ans(lmms):
    """A folder in the Hugging Face layout. `precision`: float32 or bf16. Other arguments that lmms-eval hands to every model are not used:
    rows are batched by image."""

    is_simple = True

    def __init__(self, pretrained: str, device: str | None = None, precision: str = "float32", **_: Any) -> None:
        super().__init__()
        dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = Segmenter.from_pretrained(pretrained, self._device, dtype)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Of each request the mask of its expression, as text. Requests about one image are asked together."""
        rows: dict[tuple[str, str, Any], list[tuple[int, Any, Any]]] = defaultdict(list)
        for place, request in enumerate(requests):
            _, options, visual, number, task, split = request.args
            document = self.task_dict[task][split][number]
            rows[task, split, document["image_path"]].append((place, document, (options, visual)))
        answers = [""] * len(requests)
        for same in tqdm(rows.values(), desc="segment"):
            options, visual = same[0][2]
            (image,) = visual(same[0][1])
            expressions = [document["sent"] for _, document, _ in same]
            (found,) = self._model.segment([image], [expressions], options.get("max_new_tokens", 256))
            for (place, *_), one in zip(same, found, strict=True):
                counts = coco.encode(np.asfortranarray(one.mask.astype(np.uint8)))["counts"].decode() if len(one.masks) else None
                answers[place] = json.dumps({"counts": counts, "answer": one.answer})
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("ans: answers are masks, which have no likelihood")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("ans: one question at a time")
