"""The supervised objective (Sa2VA's recipe): image and expression -> mask, with the language loss on the answer."""

from ans.config import LossWeights
from ans.model.segmenter import Conversations, Features, Segmenter
from ans.objectives.batches import ReferringBatch
from ans.objectives.losses import Counts, Losses, mask_terms, seg_rate


def supervised(
    model: Segmenter, features: Features, batch: ReferringBatch, weights: LossWeights, mask_points: int, counts: Counts
) -> Losses:
    """One micro-batch's share of the loss. `features`: of its images. `counts`: objects, and labels of the answers."""
    ids, labels, attention = (x.to(model.device) for x in (batch.ids, batch.labels, batch.mask))
    out = model(features, Conversations(ids, labels, attention, batch.image_index, [None] * len(ids)))
    logits = model.masks(features, out.seg_image, out.seg_embeds).low_res
    loss, values = mask_terms(logits, batch.targets, weights, mask_points, counts)
    language = out.language_loss / counts.tokens
    values |= {"language": language.detach(), "seg_rate": seg_rate(model, out, counts)}
    return Losses(loss + weights.language * language, {f"ref_{name}": value for name, value in values.items()})
