"""Sa2VA (arXiv 2501.04001) on Qwen3-VL, in the official layout of its folders.

Features of three blocks of the vision transformer are added behind the language model's first layers (DeepStack), and the state of
`[SEG]` is taken before the last norm. The modules are transformers' own.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import Cache, Qwen3VLTextConfig, Qwen3VLTextModel, Qwen3VLVisionConfig, Qwen3VLVisionModel

from ans.model import qwen_vl
from ans.model.family import Inputs, States


@dataclass(frozen=True)
class Family(qwen_vl.QwenVL):
    title = "Qwen3-VL"
    code = "ByteDance/Sa2VA-Qwen3-VL-4B"
    released = "qwen3_vl"
    configs = (Qwen3VLTextConfig, Qwen3VLVisionConfig)
    written = qwen_vl.TEMPLATE
    mean = std = (0.5, 0.5, 0.5)

    def build(self) -> "Vlm":
        return Vlm(self, Qwen3VLVisionModel(self.vision), Qwen3VLTextModel(self.language))

    @classmethod
    def released_name(cls, name: str) -> str:
        return f"model.{name}"


class Vlm(qwen_vl.Vlm):
    def levels(self, pixels: Tensor, sizes: Tensor) -> list[Tensor]:
        found = self.visual(pixels, grid_thw=sizes)
        return [found.pooler_output, *found.deepstack_features]

    def attention(self, inputs: Inputs) -> Any:
        return replace(inputs, padded=True).attention()  # takes none but a whole mask without reading positions

    def run(self, inputs: Inputs, cache: Cache | None = None) -> States:
        # 4.57.0, with which the releases were trained, gave the last layer's output as the last hidden state; later versions norm it
        before: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            before.append(given[0])

        handle = self.language_model.model.norm.register_forward_pre_hook(keep)
        try:
            normed = self.language_model.model(
                inputs_embeds=inputs.embeds,
                attention_mask=self.attention(inputs),
                position_ids=inputs.positions,
                past_key_values=cache,
                use_cache=cache is not None,
                visual_pos_masks=inputs.visual,
                deepstack_visual_embeds=list(inputs.deep) or None,
            ).last_hidden_state
        finally:
            handle.remove()
        return States(normed, before[0])
