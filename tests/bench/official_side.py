"""The official code's side of `tests.bench.evaluation --size medium --official FOLDER`, run by an interpreter that has the version of
transformers that it pins. Needs nothing of this repository.

`python official_side.py FOLDER MODEL SPEC`: the official files, a model folder, and a JSON of sizes and questions. Reads names of work from
stdin, a line each (`segment 7 sdpa`), and answers each with a line of JSON: CPU seconds, and texts with their masks' pixels.

What is changed of the official code, in memory: sizes that it has as constants; float32 on a CPU for bf16, CUDA's devices and autocast;
of torchvision, timm and einops, where they are not installed, the few calls that are made. In its SDPA form language model and vision
encoder attend by `scaled_dot_product_attention`; else, on a CPU, by plain products.
"""

import contextlib
import importlib.machinery
import importlib.util
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

SAM2_SIZES = {
    "image_size = 1024": "image_size = {image_size}",
    "embed_dim = 144": "embed_dim = {embed_dim}",
    "num_heads = 2\n            stages": "num_heads = {num_heads}\n            stages",
    "stages = [2, 6, 36, 4]": "stages = {stages}",
    "global_att_blocks = [23, 33, 43]": "global_att_blocks = {global_att_blocks}",
    "window_spec = [8, 4, 16, 8]": "window_spec = {window_spec}",
    "backbone_channel_list = [1152, 576, 288, 144]": "backbone_channel_list = {channels}",
}
"""Texts of the official `sam2.py`, each once in it, and what stands there for a model of other sizes."""


def stand_in(modules: dict[str, dict[str, Any]]) -> None:
    """Modules with these contents, the first the package of the others, unless it is installed."""
    if importlib.util.find_spec(next(iter(modules))) is None:
        for name, contents in modules.items():
            sys.modules[name] = module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            vars(module).update(contents)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)


def stand_ins() -> None:
    class Compose:
        def __init__(self, steps: list) -> None:
            self.steps = steps

        def __call__(self, value: Any) -> Any:
            for step in self.steps:
                value = step(value)
            return value

    def normalise(mean: tuple, std: tuple) -> Any:
        return lambda x: (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    transforms = {
        "Compose": Compose,
        "Lambda": lambda work: work,
        "Resize": lambda size, interpolation: lambda image: image.resize(size[::-1], Image.Resampling.BICUBIC),
        "ToTensor": lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255,
        "Normalize": normalise,
    }
    functional = {
        "InterpolationMode": types.SimpleNamespace(BICUBIC=None),
        "resize": None,
        "to_pil_image": lambda array, mode: Image.fromarray(array, mode),
    }
    stand_in({"torchvision": {}, "torchvision.transforms": transforms, "torchvision.transforms.functional": functional})
    stand_in({"timm": {}, "timm.models": {}, "timm.models.layers": {"DropPath": None}})  # its rate is 0
    stand_in({"einops": {"rearrange": None}})  # only behind flash attention, and in InternLM2


def load_code(folder: Path, sam2: dict[str, Any]) -> types.ModuleType:
    """The module of the official model, with these sizes of SAM2. Raises `SystemExit` where its files are not as expected."""
    package = types.ModuleType("official")
    package.__path__ = [str(folder)]
    sys.modules["official"] = package
    text = (folder / "sam2.py").read_text(encoding="utf-8")
    for old, new in SAM2_SIZES.items():
        if text.count(old) != 1:
            raise SystemExit(f"error: {folder / 'sam2.py'}: {old!r} stands there {text.count(old)} times, and not once")
        text = text.replace(old, new.format(**sam2))
    text = text.replace('torch.autocast(device_type="cuda", dtype=torch.bfloat16)', "torch.autocast('cpu', enabled=False)")
    text = text.replace("torch.bfloat16", "torch.float32").replace('torch.device("cuda")', 'torch.device("cpu")')
    sys.modules["official.sam2"] = module = types.ModuleType("official.sam2")
    module.__package__ = "official"
    exec(compile(text, str(folder / "sam2.py"), "exec"), vars(module))
    return importlib.import_module("official.modeling_sa2va_chat")


@contextlib.contextmanager
def sdpa(model: Any, code: types.ModuleType) -> Any:
    attention = sys.modules["official.modeling_intern_vit"].InternAttention
    naive, language = attention._naive_attn, model.language_model.config

    def fast(self: Any, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).reshape(b, n, c))

    attention._naive_attn, language._attn_implementation = fast, "sdpa"
    try:
        yield
    finally:
        attention._naive_attn, language._attn_implementation = naive, "eager"


def main(folder: Path, weights: Path, spec: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    torch.backends.cuda.sdp_kernel = lambda *_, **__: contextlib.nullcontext()
    stand_ins()
    code = load_code(folder, spec["sam2"])
    configuration = sys.modules["official.configuration_sa2va_chat"].Sa2VAChatConfig
    values = json.loads((weights / "config.json").read_text(encoding="utf-8")) | {"architectures": ["Sa2VAChatModel"]}
    values["vision_config"]["architectures"] = ["InternVisionModel"]
    model = code.Sa2VAChatModel(configuration(**values))
    state: dict[str, torch.Tensor] = {}
    for file in sorted(weights.glob("*.safetensors")):
        state |= load_file(file)
    model.load_state_dict(state)
    model.eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights)
    model.preparing_for_generation(tokenizer, max_new_tokens=spec["tokens"], torch_dtype=torch.float32)
    tile = spec["tile"]
    model.image_size, model.max_dynamic_patch, model.use_thumbnail = tile, 1, False
    model.patch_token = int((tile // model.patch_size) ** 2 * model.downsample_ratio**2)
    model.extra_image_processor.target_length = spec["sam2"]["image_size"]
    model.transformer = code.T.Compose(
        [
            code.T.Resize((tile, tile), interpolation=code.InterpolationMode.BICUBIC),
            code.T.ToTensor(),
            code.T.Normalize(mean=model.IMAGENET_MEAN, std=model.IMAGENET_STD),
        ]
    )
    image = Image.open(spec["image"])
    regions = np.load(spec["regions"])

    def segment(question: str) -> dict[str, Any]:
        found = model.predict_forward(image=image, text="<image>" + question, tokenizer=tokenizer)
        masks = found["prediction_masks"]
        return {"text": found["prediction"], "pixels": int(masks[0].sum()) if masks else 0}

    def describe(region: np.ndarray) -> dict[str, Any]:
        text = "<image>" + spec["describe"]
        return {
            "text": model.predict_forward(image=image, text=text, mask_prompts=[region[None]], tokenizer=tokenizer)["prediction"]
        }

    print("ready", flush=True)
    for line in sys.stdin:
        kind, number, *form = line.split()
        asked = spec["questions"][: int(number)] if kind == "segment" else regions[: int(number)]
        with torch.no_grad(), sdpa(model, code) if form else contextlib.nullcontext():
            start = time.process_time()
            answers = [segment(one) if kind == "segment" else describe(one) for one in asked]
            seconds = time.process_time() - start
        print(json.dumps({"seconds": seconds, "answers": answers}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
