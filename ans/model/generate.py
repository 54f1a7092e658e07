"""Generation over a prompt prefix that several rows share, keeping the hidden states of `[SEG]`: greedy, or of a given answer."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass(frozen=True)
class Prefix:
    """Keys and values of B prompt beginnings; `mask` (B, P) is 0 where one was padded on the left."""

    cache: DynamicCache
    mask: Tensor

    def rows(self, index: Tensor) -> "Prefix":
        """A prefix of its own for every row: the n-th continues beginning `index[n]`. This one stays as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]  # selecting puts new tensors in place of the old
        cache.batch_select_indices(index)
        return Prefix(cache, self.mask[index])


@dataclass(frozen=True)
class Generated:
    """One row's answer: its token ids, the last hidden state (n, D) of each `[SEG]` in it, and the geometric mean of the
    probabilities that the tokens had."""

    ids: list[int]
    seg_states: Tensor
    confidence: float


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (L_i, D) -> (N, L, D) padded with zeros on the left, and the mask (N, L)."""
    length = max(len(row) for row in rows)
    padded = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.long, device=rows[0].device)
    for number, row in enumerate(rows):
        padded[number, length - len(row) :] = row
        mask[number, length - len(row) :] = 1
    return padded, mask


@torch.no_grad()
def prefill(language_model: nn.Module, beginnings: Sequence[Tensor]) -> Prefix:
    """Run prompt beginnings (P_i, D) once, so that every row that starts with one can continue from it."""
    embeds, mask = pad_left(beginnings)
    cache = DynamicCache(config=language_model.config)
    _forward(language_model, embeds, mask, cache)
    return Prefix(cache, mask)


@torch.no_grad()
def greedy(
    language_model: nn.Module,
    prefix: Prefix,
    rows: Sequence[Tensor],
    ended: Callable[[list[int]], bool],
    seg_token: int,
    max_new_tokens: int,
) -> list[Generated]:
    """Continue `prefix`, which is used up, by `rows` (S_i, D) and decode greedily until `ended(ids)` holds for every row.

    Rows that have ended leave the batch once they are half of it: sooner, copying the others' cache costs more than it saves.
    A `[SEG]` has its hidden state where it is the input, so one that is the very last token allowed has none and gives no mask,
    as in the official code.
    """
    embeds, suffix_mask = pad_left(rows)
    mask = torch.cat([prefix.mask, suffix_mask], dim=1)
    ids: list[list[int]] = [[] for _ in rows]
    states: list[list[Tensor]] = [[] for _ in rows]
    likely = [0.0] * len(rows)
    running = [True] * len(rows)
    batch = list(range(len(rows)))  # the row at each place of the batch
    for _ in range(max_new_tokens):
        hidden = _forward(language_model, embeds, mask, prefix.cache)[:, -1]
        logits = language_model.lm_head(hidden).float()
        tokens = logits.argmax(-1)
        log_probability = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
        for place, (number, token) in enumerate(zip(batch, tokens.tolist(), strict=True)):
            if running[number]:
                likely[number] += log_probability[place]
                if ids[number] and ids[number][-1] == seg_token:
                    states[number].append(hidden[place])
                ids[number].append(token)
                running[number] = not ended(ids[number])
        places = [place for place, number in enumerate(batch) if running[number]]
        if not places:
            break
        if 2 * len(places) <= len(batch):
            index = torch.tensor(places, device=tokens.device)
            prefix.cache.batch_select_indices(index)
            tokens, mask, batch = tokens[index], mask[index], [batch[place] for place in places]
        embeds = language_model.get_input_embeddings()(tokens)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
    empty = embeds.new_zeros(0, embeds.shape[-1])
    return [
        Generated(row, torch.stack(found) if found else empty, math.exp(total / max(1, len(row))))
        for row, found, total in zip(ids, states, likely, strict=True)
    ]


@torch.no_grad()
def forced(language_model: nn.Module, prefix: Prefix, rows: Sequence[Tensor], answer: Tensor) -> Tensor:
    """(N, A, D) last hidden states over one `answer` (A, D), teacher-forced after each of the N `rows` (S_i, D).

    Like `greedy` it uses `prefix` up.
    """
    embeds, mask = pad_left([torch.cat([row, answer]) for row in rows])
    return _forward(language_model, embeds, torch.cat([prefix.mask, mask], dim=1), prefix.cache)[:, -len(answer) :]


def _forward(language_model: nn.Module, embeds: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
    return language_model.model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
