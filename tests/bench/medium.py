"""A model of about 100 million random weights in the proportions of the official layout, at which encoders count, and how near its
inference comes to what the machine can do. See `tests.bench.evaluation --size medium`."""

import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from ans.model.config import ModelConfig
from tests.bench import sizes
from tests.bench.gpu import FlopCount

WORDS = 2000
TILE, SAM, WIDTH, HEIGHT = 448, 512, 640, 480

Work = Callable[[], object]


def config(tile: int = TILE, sam: int = SAM) -> ModelConfig:
    """InternViT : Qwen2.5 : SAM2 as 30 : 48 : 22, like Sa2VA-1B without its vocabulary. One tile per image."""
    values = sizes.config_json("sa2va-1b")
    vision = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "image_size": tile,
    }
    language = {"hidden_size": 512, "intermediate_size": 2752, "num_hidden_layers": 11, "num_attention_heads": 8}
    decoder = {"image_size": sam, "embed_dim": 80, "num_heads": 1, "stages": (1, 2, 7, 2), "global_att_blocks": (5, 7, 9)}
    return ModelConfig.from_dict(
        values
        | {"force_image_size": tile, "max_dynamic_patch": 1, "use_thumbnail": False, "dynamic_image_size": False}
        | {"vision_config": values["vision_config"] | vision}
        | {"llm_config": values["llm_config"] | language | {"vocab_size": WORDS}}
        | {"sam2_config": decoder | {"window_spec": (8, 4, 14, 7)}}
    )


def cpu_seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def product_rate() -> float:
    """FLOP per CPU second of a float32 product of this size of layer, now."""
    rows, width, inner = 1024, 512, 2048
    a, b = torch.rand(rows, width), torch.rand(width, inner)
    return max(2 * rows * width * inner / cpu_seconds(lambda: a @ b) for _ in range(20))


def measure(repeats: int, many: int = 7, tokens: int = 16, tile: int = TILE, sam: int = SAM) -> dict[str, float]:
    """The numbers of `--size medium`; `many` expressions or regions of an image, `tokens` of an answer."""
    torch.set_num_threads(1)
    model = sizes.random_model(config(tile, sam), torch.device("cpu"), torch.float32).eval()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    texts = [f"w{1 + n} w{2 + n} w{3 + n}" for n in range(many)]
    regions = np.zeros((many, HEIGHT, WIDTH), bool)
    for n in range(many):
        regions[n, 40 * n : 40 * n + 200, 60 * n : 60 * n + 240] = True
    work: dict[str, Work] = {
        "read": lambda: model.read([image]),
        "segment 1": lambda: model.segment([image], [texts[:1]], tokens),
        "segment 1, 4 images": lambda: model.segment([image] * 4, [texts[:1]] * 4, tokens),
        f"segment {many}": lambda: model.segment([image], [texts], tokens),
        "describe 1, 4 images": lambda: model.describe([image] * 4, [regions[:1]] * 4, tokens),
        "describe 1": lambda: model.describe([image], [regions[:1]], tokens),
        f"describe {many}": lambda: model.describe([image], [regions], tokens),
    }
    flops, times, limits = {}, {name: [] for name in work}, {name: [] for name in work}
    for name, one in work.items():  # warm-up, too
        with FlopCount() as counter:
            one()
        flops[name] = counter.total
    for _ in range(repeats):
        for name, one in work.items():
            rate = product_rate()
            times[name].append(cpu_seconds(one))
            limits[name].append(flops[name] / max(rate, product_rate()) / times[name][-1])
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{weights / 1e6:.0f} million weights, one thread, CPU seconds; GFLOP counted; share of the limit by products")
    best = {name: min(values) for name, values in times.items()}
    share = {name: max(values) for name, values in limits.items()}
    for name in work:
        print(f"{name:<22}{best[name]:>9.3f}{flops[name] / 1e9:>9.1f}{share[name]:>9.2f}")
    asked = ("segment 1", f"segment {many}", "describe 1", f"describe {many}")
    ideal = best["read"] + many * (best["segment 1"] - best["read"])
    return {
        "seven_over_ideal": ideal / best[f"segment {many}"],
        "one_over_single": 4 * best["segment 1"] / best["segment 1, 4 images"],
        "describe_one": 4 * best["describe 1"] / best["describe 1, 4 images"],
        "describe_seven": many * best["describe 1"] / best[f"describe {many}"],
        "of_limit": min(share[name] for name in asked),
        **{f"of_limit_{name.replace(' ', '_')}": share[name] for name in asked},
    }
