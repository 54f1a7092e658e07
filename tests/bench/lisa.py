"""GPU memory of LISA at full size, one sample a step: measured on a GPU, else an itemised estimate by formula.

`python -m tests.bench.gpu --preset lisa-7b` measures where there is a GPU and prints the estimate in any case. Random weights;
three choices of LoRA's targets. Peaks are `torch.cuda.max_memory_allocated` and the optimizer's pages, without the CUDA context;
GB are 10^9 bytes.
"""

import gc
from typing import Any

import torch

from ans.config import Config
from ans.config.training import TrainSettings
from ans.model import prompts
from ans.model.config import ModelConfig
from ans.model.four_bit import hold_in_four_bits
from ans.model.segmenter import Segmenter
from ans.objectives.batches import pad_right
from ans.planning import memory
from ans.planning.released import RELEASED
from ans.tasks import referring
from ans.training import setup
from tests.bench import sizes
from tests.bench.trainer import Trainer, preset

CHOICES: dict[str, tuple[str, ...]] = {
    "none": (),
    "q,v": ("q_proj", "v_proj"),
    "q,k,v,o": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
"""LoRA's targets."""
WORDS = 40
"""Of the question in the sample; with the image, the system's text and the answer the sequence has about 700 tokens."""
VALUES: dict[str, Any] = RELEASED["llava-hf/llava-1.5-7b-hf"]


def empty_model(config: ModelConfig) -> Segmenter:
    """The model without memory."""
    words = sizes.tokenizer(config.language.vocab_size, ("<image>", "</s>"))
    with torch.device("meta"):
        return Segmenter(config, words, config.family.build())


def trained_by(targets: tuple[str, ...], **changes: Any) -> Config:
    """The preset with LoRA on these layers; without any, without LoRA."""
    lora = {"enabled": bool(targets)} | ({"targets": list(targets)} if targets else {})
    return preset("lisa-7b", lora=lora, **changes)


def estimate(settings: TrainSettings) -> dict[str, float]:
    """GB by item, and their sum, for one sample a step; its few answer tokens are no memory to speak of."""
    model = memory.empty_model(ModelConfig.from_dict(VALUES))
    setup.make_trainable(model, settings)
    tokens = model.config.family.grid(1, 1).tokens + WORDS + 84
    return memory.estimate(model, settings, memory.Micro(tokens, labels=0), teacher=False, loops=False)


def measure(config: Config, values: dict[str, Any] = VALUES, device: str = "cuda") -> dict[str, float]:
    """Peak GB of three optimizer steps on one sample, the sequence's length, and the quickest step's seconds."""
    settings = config.train
    model = empty_model(ModelConfig.from_dict(values)).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        kind = torch.bfloat16 if name.startswith("vlm.") else torch.float32
        parameter.data = (0.02 * torch.randn(parameter.shape)).to(kind)
    for buffer in model.buffers():
        buffer.zero_()
    model.vlm.restore_buffers()
    for name, part in {"language": model.vlm.language_model.model, "vision": model.vlm.vision, "sam": model.sam.encoder}.items():
        if name in settings.four_bit:
            hold_in_four_bits(part, torch.device(device))
    model.vlm.language_model.is_loaded_in_4bit = "language" in settings.four_bit
    trainer = Trainer(model.to(device), config)
    batch = sample(model, settings.mask_points)
    seconds = []
    for number in range(4):
        if number == 1 and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds.append(sizes.seconds(lambda: trainer.step([("referring", batch)])))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    # CUDA's count knows nothing of pages, which lie there as long as there is room
    peak += sum(value.nbytes for value in states if getattr(value, "is_paged", False)) / 1e9
    return {"peak_gb": peak, "tokens": batch.ids.shape[1], "seconds": min(seconds[1:])}


def sample(model: Segmenter, mask_points: int) -> referring.Batch:
    """One image, one expression of `WORDS` words."""
    image = model.template.image_string(model.config.family.grid(1, 1).tokens)
    turn = prompts.Turn(image + model.template.questions[0].format(" ".join(["w1"] * WORDS)), prompts.SEG_ANSWERS[2])
    ids, labels, mask = pad_right([prompts.encode_conversation(model.tokenizer, model.template, [turn])])
    return referring.Batch(sizes.pixels_of(model, 1, 1), ids, labels, mask, [0], sizes.targets_of(model, 1, mask_points))


def report(measured: bool) -> dict[str, Any]:
    """Print both tables; what goes into the JSON line."""
    tables = {name: estimate(trained_by(targets).train) for name, targets in CHOICES.items()}
    result: dict[str, Any] = {"preset": "lisa-7b", "estimate_gb": tables, "measured": {}}
    print("An estimate by formula, in GB, for one sample a step; LoRA on: " + ", ".join(tables))
    for item in next(iter(tables.values())):
        print(f"{item:<42}" + "".join(f"{table[item]:>9.2f}" for table in tables.values()))
    for name, targets in CHOICES.items() if measured else ():
        result["measured"][name] = measure(trained_by(targets))
        gc.collect()
        torch.cuda.empty_cache()
        print(f"measured, LoRA on {name}: {result['measured'][name]}")
    return result
