"""Sa2VA (arXiv 2501.04001) on Qwen2.5-VL, in the official layout of its folders.

Most blocks of the vision transformer attend within windows of 112 pixels. The modules are transformers' own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import Cache, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from ans.model import preprocess, qwen_vl
from ans.model.family import Inputs, States

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@dataclass(frozen=True)
class Family(qwen_vl.QwenVL):
    title = "Qwen2.5-VL"
    code = "ByteDance/Sa2VA-Qwen2_5-VL-7B"
    released = "qwen2_5_vl"
    configs = (Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig)
    written = replace(qwen_vl.TEMPLATE, system=_SYSTEM)
    mean, std = preprocess.CLIP_MEAN, preprocess.CLIP_STD

    def build(self) -> "Vlm":
        return Vlm(self, Qwen2_5_VisionTransformerPretrainedModel(self.vision), Qwen2_5_VLTextModel(self.language))

    @classmethod
    def assembled(cls, values: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
        if "text_config" not in values:  # as released, the language model's settings are not in a section of their own
            known = {*Qwen2_5_VLTextConfig().to_dict(), "rope_theta", "rope_scaling"}
            text = {key: value for key, value in values.items() if key in known}
            values = {key: value for key, value in values.items() if key not in text}
            values["text_config"] = text | {"model_type": f"{cls.released}_text"}
        return super().assembled(values, tokens)

    @classmethod
    def released_name(cls, name: str) -> str:
        if name.startswith(("model.visual.", "model.language_model.", "lm_head.")):  # as transformers saves it today
            return f"model.{name}"
        if name.startswith("visual."):
            return f"model.model.{name}"
        return qwen_vl.LANGUAGE + name.removeprefix("model.")


class Vlm(qwen_vl.Vlm):
    def run(self, inputs: Inputs, cache: Cache | None = None) -> States:
        states = self.language_model.model(
            inputs_embeds=inputs.embeds,
            attention_mask=self.attention(inputs),
            position_ids=inputs.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return States(states, states)
