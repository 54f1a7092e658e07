"""Loop 2: caption -> mask -> caption. From a caption the model segments, and from the mask it found it must tell the caption."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ans.config import Loop2, LossWeights
from ans.model import prompts
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives.batches import CaptionBatch, pad_right
from ans.objectives.losses import Chain, Counts, Losses, mask_terms, seg_rate


def loop2(
    model: Segmenter,
    features: Features,
    batch: CaptionBatch,
    settings: Loop2,
    weights: LossWeights,
    mask_points: int,
    counts: Counts,
    look: bool = False,
) -> tuple[Losses, Chain | None]:
    """One micro-batch's share of the loss: the captions' and the answers' cross-entropy, each a mean over its own labels.
    `features`: of its images. To `look`, the model also describes freely what it found."""
    index = list(range(len(batch.captions)))
    image = prompts.image_string(model.config.tokens_per_tile)
    encoded = [
        prompts.encode_conversation(model.tokenizer, model.template, [prompts.Turn(image + question.format(text), answer)])
        for question, text, answer in zip(batch.questions, batch.texts, batch.answers, strict=True)
    ]
    ids, labels, attention = (x.to(model.device) for x in pad_right(encoded))
    found = model(features, Conversations(ids, labels, attention, index, [None] * len(ids)))
    logits = model.masks(features, found.seg_image, found.seg_embeds).low_res

    share = region_share(logits, model.config.grid_side)
    cells = share > 0.5
    # the weights are one; only their gradient, which reaches the mask, is not that of a constant
    regions: Sequence[Tensor] = cells * (1 + share - share.detach()) if settings.soft_region else cells
    encoded = []
    for question, inside, caption in zip(batch.describe_questions, cells, batch.captions, strict=True):
        prompt = prompts.encode_prompt(model.tokenizer, model.template, image + model.region_question(inside[None], question))
        encoded.append((prompt + caption, [prompts.IGNORE] * len(prompt) + caption))
    ids, labels, attention = (x.to(model.device) for x in pad_right(encoded))
    told = model(features, Conversations(ids, labels, attention, index, [region[None] for region in regions]))

    caption, answer = told.language_loss / counts.caption_tokens, found.language_loss / counts.tokens
    loss = weights.language * (caption + answer)
    supervision, values = mask_terms(logits, batch.targets, weights, mask_points, counts)
    if settings.mask_supervision:
        loss = loss + settings.mask_supervision * supervision
    with torch.no_grad():
        values |= {
            "caption": caption.detach(),
            "language": answer.detach(),
            "seg_rate": seg_rate(model, found, counts),
            "non_empty": cells.flatten(1).any(1).sum() / counts.objects,
        }
    chain = None
    if look:
        with model.evaluating():
            freely, *_ = model.caption_ids(features, index, cells, batch.describe_questions, max(map(len, batch.captions)))
        chain = Chain(batch.texts, [model.tokenizer.decode(ids) for ids in freely], logits.detach())
    return Losses(loss, {f"loop2_{name}": value for name, value in values.items()}), chain


def region_share(logits: Tensor, side: int) -> Tensor:
    """(N, S/4, S/4) mask logits -> (N, side, side) mean of the mask's probability over each cell of the region grid."""
    return F.adaptive_avg_pool2d(logits.float().sigmoid()[:, None], (side, side))[:, 0]
