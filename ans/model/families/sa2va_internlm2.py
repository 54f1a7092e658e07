"""Sa2VA (arXiv 2501.04001) on InternVL2.5 with InternLM2: Sa2VA-8B and -26B, in the official layout of their folders.

Everything but the language model is as on InternVL2.5 with Qwen2.5. The 26B's vision transformer, InternViT-6B, differs in its
configuration alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import LlamaConfig

from ans.model import internlm2
from ans.model.families import sa2va_internvl

_EMBEDDING, _OUTPUT = "language_model.model.tok_embeddings.", "language_model.output."
_SPACES = ("model", "pth", "research")

KEYS = replace(
    sa2va_internvl.KEYS,
    spaces={name: sa2va_internvl.KEYS.spaces[name] for name in _SPACES}
    | {"model": {**sa2va_internvl.KEYS.spaces["model"], _OUTPUT: "vlm.language_model.lm_head."}},
    shards={**sa2va_internvl.KEYS.shards, "embed_head": (_EMBEDDING, _OUTPUT)},
)


@dataclass(frozen=True)
class Family(sa2va_internvl.Family):
    title = "InternVL with InternLM2"
    tables = (f"{_EMBEDDING}weight", f"{_OUTPUT}weight")
    lora_targets = internlm2.LAYERS
    code = "ByteDance/Sa2VA-8B"
    keys = KEYS
    architecture = "InternLM2ForCausalLM"
    written = "internlm2_chat"

    @classmethod
    def read_language(cls, values: Mapping[str, Any]) -> LlamaConfig:
        if values["hidden_act"] != "silu":
            raise ValueError(
                f"llm_config.hidden_act: {values['hidden_act']!r} is not supported; every released InternLM2 has silu"
            )
        return LlamaConfig(**sa2va_internvl.language_settings(values), attention_bias=values["bias"])

    def build(self) -> sa2va_internvl.InternVL:
        return sa2va_internvl.InternVL(self, internlm2.InternLM2(self.language))
