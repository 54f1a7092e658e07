"""Sa2VA (arXiv 2501.04001) on LLaVA-1.5, in the official layout of its folder: LISA's vision and language side, joined to SAM2.

An image is one square into which the whole of it is squeezed. The release learnt no regions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from PIL import Image
from transformers import PretrainedConfig

from ans.model import preprocess
from ans.model.families import lisa
from ans.model.family import Pixels
from ans.model.keys import KeyTable, Renaming
from ans.model.prompts import Template

TEMPLATE = Template(
    "USER: {input} ASSISTANT:", "</s>", "\n", ("</s>",), image_start="", image_token="<image>", image_end=""
)  # fmt: skip

TOWER, PROJECTOR = "model.model.vision_tower.vision_model.", "model.model.multi_modal_projector."
LANGUAGE = "model.model.language_model."
EMBEDDING, OUTPUT = f"{LANGUAGE}embed_tokens.", "model.lm_head."
_WRAPPED, _SAVED = "mllm.model.base_model.", ((".modules_to_save.default.weight", ".weight"),)
_ALL = (TOWER, PROJECTOR, LANGUAGE, OUTPUT)


@dataclass(frozen=True)
class Family(lisa.Family):
    system = "Sa2VA"
    title = "LLaVA"
    decoder = "sam2"
    tables = (f"{EMBEDDING}weight", f"{OUTPUT}weight")
    new_tokens = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")
    remote = {
        "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfigLlava",
        "AutoModel": "modeling_sa2va_llava.Sa2VAChatModelLlava",
        "AutoModelForCausalLM": "modeling_sa2va_llava.Sa2VAChatModelLlava",
    }
    code = "ByteDance/Sa2VA-LLaVA-1.5-7B"
    keys = KeyTable(
        spaces={
            "model": {
                TOWER: "vlm.vision_tower.",
                PROJECTOR: "vlm.multi_modal_projector.",
                LANGUAGE: "vlm.language_model.model.",
                OUTPUT: "vlm.language_model.lm_head.",
            },
            "pth": {prefix: f"{_WRAPPED}{prefix}" for prefix in _ALL},
            "research": {prefix: f"mllm.{prefix}" for prefix in _ALL},
        },
        shards={"vision": (TOWER,), "proj": (PROJECTOR,), "embed_head": (EMBEDDING, OUTPUT), "llm": (LANGUAGE,)},
        renamings=tuple(Renaming(table, ("pth",), _SAVED) for table in (EMBEDDING, OUTPUT)),
    )

    @classmethod
    def owns(cls, values: Mapping[str, Any]) -> bool:
        return (
            values.get("model_type") == "sa2va_chat"
            and (values.get("vision_config") or {}).get("model_type") == "clip_vision_model"
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        llava = super().read(values).llava
        return cls(cast(PretrainedConfig, llava.text_config), TEMPLATE, llava)

    def pixels(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        side = self.vision.image_size
        square = preprocess.resize(image, side, side)
        values = preprocess.normalise([square], preprocess.CLIP_MEAN, preprocess.CLIP_STD)
        return Pixels(values, self.grid(image.height, image.width))

    @classmethod
    def made_of(cls, values: Mapping[str, Any]) -> bool:
        return False  # of LLaVA as it is released LISA's bases are made

    @classmethod
    def assembled(cls, values: Mapping[str, Any], tokens: int | None = None) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def released_name(cls, name: str) -> str:
        raise NotImplementedError
