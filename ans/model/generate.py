"""Generation over a prompt prefix that several rows share, keeping the states of `[SEG]`: greedy, or of a given answer."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import DynamicCache

from ans.model.family import Inputs, Vlm


@dataclass(frozen=True)
class Prefix:
    """Keys and values of B prompt beginnings; `mask` (B, P) is 0 where one was padded on the left, which `padded` says of any, `next`
    (B,) the position of the token behind each."""

    cache: DynamicCache
    mask: Tensor
    next: Tensor
    padded: bool

    def rows(self, index: Tensor) -> "Prefix":
        """Return a prefix of its own for every row: the n-th continues beginning `index[n]`. This one stays as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]  # selecting puts new tensors in place of the old
        cache.batch_select_indices(index)
        return Prefix(cache, self.mask[index], self.next[index], self.padded)

    def positions(self, mask: Tensor) -> Tensor:
        """Return (1, B, S) positions of text behind the prefix, padded where its `mask` (B, S) is 0."""
        return (self.next[:, None] + mask.cumsum(-1) - 1)[None]


@dataclass(frozen=True)
class Generated:
    """One row's answer: its token ids, the state (n, D) of each `[SEG]` in it, and, where that was asked for, the geometric mean of the
    probabilities that the tokens had, else 1."""

    ids: list[int]
    seg_states: Tensor
    confidence: float


def pad_left(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and their mask, each (N, L), padded with zeros on the left."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def prefill(vlm: Vlm, beginnings: Inputs) -> Prefix:
    """Run prompt beginnings once, so that every row that starts with one can continue from it."""
    cache = DynamicCache(config=vlm.language_model.config)
    vlm.run(beginnings, cache)
    return Prefix(cache, beginnings.mask, beginnings.positions.amax((0, 2)) + 1, beginnings.padded)


@torch.no_grad()
def greedy(
    vlm: Vlm,
    prefix: Prefix,
    rows: Inputs,
    ended: Callable[[list[int]], bool],
    seg_token: int,
    max_new_tokens: int,
    confidence: bool = False,
    together: int = 1,
) -> list[Generated]:
    """Continue `prefix`, which is used up, by `rows` and decode greedily until `ended(ids)` holds for every row.

    With `together` > 1, that many consecutive rows give one answer: the token with the highest mean log-probability.

    Rows that have ended leave the batch once they are half of it: sooner, copying the others' cache costs more than it saves. A step
    waits for the device once, for its tokens; with `confidence` their probabilities are fetched at the end.
    A `[SEG]` has its state where it is the input, so one that is the very last token allowed has none and gives no mask, as in the
    official code.
    """
    count = len(rows.embeds)
    ids: list[list[int]] = [[] for _ in range(count)]
    states: list[list[Tensor]] = [[] for _ in range(count)]
    probabilities: list[Tensor] = []  # of each step, the logarithms of those of its tokens
    chosen: list[list[tuple[int, int]]] = []  # of each step, the rows that were running, and their places
    running = [True] * count
    batch = list(range(count))  # the row at each place of the batch
    inputs = rows
    for _ in range(max_new_tokens):
        normed, seg = (state[:, -1] for state in vlm.run(inputs, prefix.cache))
        logits = vlm.language_model.lm_head(normed).float()
        scores = logits if together == 1 else logits.log_softmax(-1).unflatten(0, (-1, together)).mean(1)
        tokens = scores.argmax(-1).repeat_interleave(together)
        if confidence:
            probabilities.append(logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
            chosen.append([(place, number) for place, number in enumerate(batch) if running[number]])
        for place, (number, token) in enumerate(zip(batch, tokens.tolist(), strict=True)):
            if running[number]:
                if ids[number] and ids[number][-1] == seg_token:
                    states[number].append(seg[place])
                ids[number].append(token)
                running[number] = not ended(ids[number])
        places = [place for place, number in enumerate(batch) if running[number]]
        if not places:
            break
        mask, positions = inputs.mask, inputs.positions[..., -1:] + 1  # rows end on the right: the last position is never padding
        if 2 * len(places) <= len(batch):
            index = torch.tensor(places, device=tokens.device)
            prefix.cache.batch_select_indices(index)
            tokens, mask, positions = tokens[index], mask[index], positions[:, index]
            batch = [batch[place] for place in places]
        embeds = vlm.language_model.get_input_embeddings()(tokens)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
        inputs = Inputs(embeds, mask, positions, torch.zeros_like(tokens, dtype=torch.bool)[:, None], padded=rows.padded)
    likely = [0.0] * count
    fetched = iter(torch.cat(probabilities).tolist() if probabilities else [])
    for step, taken in zip(probabilities, chosen, strict=True):
        values = list(islice(fetched, len(step)))
        for place, number in taken:
            likely[number] += values[place]
    empty = rows.embeds.new_zeros(0, rows.embeds.shape[-1])
    return [
        Generated(row, torch.stack(found) if found else empty, math.exp(total / max(1, len(row))))
        for row, found, total in zip(ids, states, likely, strict=True)
    ]


@torch.no_grad()
def forced(vlm: Vlm, prefix: Prefix, rows: Inputs, length: int) -> Tensor:
    """Return (N, length, D) states, for `[SEG]`, of the last tokens of `rows`, which continue `prefix`. Like `greedy` it uses it up."""
    return vlm.run(rows, prefix.cache).seg[:, -length:]
