"""Speed of SAM2 by the `sam2` package over transformers' own SAM2, same weights: `python -m tests.bench.masks [--quick]`.

encode_over_native, decode_over_native   seconds of the package over those of transformers: of the image encoder on one image, and of the
                                         mask decoder on seven prompts (the quickest of several turns, taken alternately)
differ                                   largest difference of the masks' logits, over their standard deviation

Hiera-L at 1024 px, as Sa2VA has it; `--quick`: Hiera-T at 512 px.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ans.model.decoders.sam2 import MaskDecoder
from tests.bench import add_scales
from tests.native_sam2 import native

SMALL = MaskDecoder(
    image_size=512, embed_dim=96, num_heads=1, stages=(1, 2, 7, 2), global_att_blocks=(5, 7, 9), window_spec=(8, 4, 14, 7)
)
TINY = MaskDecoder(
    image_size=128, embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,), window_spec=(8, 4, 4, 2), d_model=64,
    window_pos_embed_bkg_spatial_size=(4, 4), memory_dim=16, memory_feedforward=64, memory_layers=1,
)  # fmt: skip
PROMPTS = 7


def seconds(turns: int, *work: Callable[[], object]) -> list[float]:
    """The quickest turn of each."""
    times: list[list[float]] = [[] for _ in work]
    for _ in range(turns):
        for one, taken in zip(work, times, strict=True):
            start = time.perf_counter()
            one()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


@torch.no_grad()
def measure(sizes: MaskDecoder, turns: int) -> dict[str, float]:
    torch.manual_seed(0)
    ours = sizes.build().eval()
    for module in ours.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.init.normal_(module.weight)
    theirs = native(ours, sizes)
    pixels, prompts = torch.randn(1, 3, sizes.image_size, sizes.image_size), torch.randn(PROMPTS, sizes.width)
    features, where = ours.project(ours.encode(pixels)), torch.zeros(PROMPTS, dtype=torch.long)
    points = torch.zeros(1, PROMPTS, 1, 2), -torch.ones(1, PROMPTS, 1, dtype=torch.int)
    places = theirs.get_image_wide_positional_embeddings()

    def decode() -> Tensor:
        sparse, dense = theirs.prompt_encoder(*points, None, None)
        return theirs.mask_decoder(
            image_embeddings=features[2], image_positional_embeddings=places,
            sparse_prompt_embeddings=torch.cat([sparse, prompts[None, :, None]], 2), dense_prompt_embeddings=dense,
            multimask_output=True, high_resolution_features=list(features[:2]),
        )[0][0]  # fmt: skip

    found = ours.decode(features, where, prompts).candidates
    encoding = seconds(turns, lambda: ours.encode(pixels), lambda: theirs.vision_encoder(pixels))
    decoding = seconds(3 * turns, lambda: ours.decode(features, where, prompts), decode)
    for name, (one, other) in (("image encoder", encoding), (f"mask decoder, {PROMPTS} prompts", decoding)):
        print(f"{name:<28}sam2 {1000 * one:>9.1f} ms   transformers {1000 * other:>9.1f} ms")
    return {
        "encode_over_native": encoding[0] / encoding[1],
        "decode_over_native": decoding[0] / decoding[1],
        "differ": float((found - decode()).abs().max() / found.std()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, quick="a smaller SAM2: under 50 s on 2 cores")
    work = {"full": (MaskDecoder(), 3), "quick": (SMALL, 5), "smoke": (TINY, 1)}
    print(json.dumps(measure(*work[parser.parse_args().scale])))
