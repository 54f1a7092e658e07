"""ANS in lmms-eval: a model adapter and pixel-level referring segmentation."""

from typing import Any


def manifest() -> Any:
    """What the entry point `lmms_eval.models` gives: `--model ans`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="ans", simple_class_path="ans_lmms_eval.model.Ans")
