"""What is computed of captions, as tokens. The tokens of R captions lie side by side, (N,); `lengths` says which belong together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ans.facts import Facts
from ans.model.host import sent


@dataclass(frozen=True)
class Caption:
    """R captions as the segmentation prompt takes them.

    `ids`: the tokens of each. `embeds` (N, D): what is read in their place, or None for the embeddings of `ids`; then `chosen` (N,) are
    its tokens, which only the device knows yet. `extra`: further loss; `values`: for the curves.
    """

    ids: list[list[int]]
    embeds: Tensor | None
    extra: Tensor | float
    values: dict[str, Tensor]
    chosen: Tensor | None = None

    def words(self, tokens: Tensor | None) -> list[list[int]]:
        """Return the tokens (N,) of each caption, fetched from the device; None: those of `ids`."""
        lengths = [len(ids) for ids in self.ids]
        return self.ids if tokens is None else [part.tolist() for part in tokens.cpu().split(lengths)]


def corrupt(ids: list[int], ratio: float, uniform: Tensor, ordinary: Tensor) -> list[int]:
    """Return `ids` with round(ratio * n) of its tokens replaced by tokens of `ordinary` (ids that are not special).

    `uniform` (T, 2) in [0, 1): the tokens with the lowest first number are replaced, the second number says by what.
    """
    count = round(ratio * len(ids))
    result = list(ids)
    for place in uniform[: len(ids), 0].argsort()[:count].tolist():
        result[place] = int(ordinary[int(uniform[place, 1] * len(ordinary))])
    return result


def only_text(logits: Tensor, text_tokens: Tensor) -> Tensor:
    """Return `logits` (N, V) that leave nothing but `text_tokens`, on the CPU: no special token, and no row that no token uses."""
    other = torch.ones(logits.shape[-1], dtype=torch.bool)
    other[text_tokens] = False
    return logits.index_fill(1, sent(other.nonzero()[:, 0], logits.device), float("-inf"))


def cross_entropy(logits: Tensor, true: Tensor, counted: Tensor, lengths: list[int], objects: int) -> Tensor:
    """Return the cross-entropy of `logits` (N, V) at the `counted` tokens (N,), bool on the CPU, to the `true` ones (N,): the mean
    over each caption's, whose sum is divided by the step's objects."""
    at = sent(counted.nonzero()[:, 0], logits.device)
    entropy = F.cross_entropy(logits[at].float(), true[at], reduction="none")
    each = torch.stack([part.sum() for part in counted.split(lengths)])  # of each object, whose mean is taken
    return (entropy / sent(each.repeat_interleave(each), logits.device)).sum() / objects


def mean_per_object(values: Tensor, lengths: list[int], objects: int) -> Tensor:
    """Return sum over objects of the mean of `values` (N,) over their tokens, divided by the step's objects."""
    parts = values.detach().split(lengths)
    return torch.stack([part.mean() if len(part) else part.sum() for part in parts]).sum() / objects


def statistics(captions: list[list[int]], ended: list[bool], objects: int) -> dict[str, float]:
    """Return the share of captions that came to an end, their mean length in tokens, the share of empty ones, and of those that no other
    object of the micro-batch has (an object by itself has such a one)."""
    times = Counter(map(tuple, captions))
    sums = {
        "ended": sum(ended),
        "length": sum(map(len, captions)),
        "empty": sum(not ids for ids in captions),
        "different": sum(count == 1 for count in times.values()),
    }
    return {name: value / objects for name, value in sums.items()}


def truth(
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    known: Sequence[tuple[str, str] | None],
    captions: list[list[int]],
    objects: int,
) -> dict[str, float]:
    """Return the mean share of the facts that captions have right, and the share of captions that fit another object better, over the
    objects whose truth is known: `objects` of the step. `known`: locator and true caption of each object, or None."""
    right = other = 0.0
    for true, ids in zip(known, captions, strict=True):
        if true is not None:
            verdict = facts.judge(*true, str(tokenizer.decode(ids)))
            right, other = right + verdict.right / verdict.facts, other + verdict.other
    return {"facts": right / objects, "other": other / objects}
