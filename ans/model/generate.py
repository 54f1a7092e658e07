"""Generation over a prompt prefix that several rows share, keeping the states of `[SEG]`: greedy, or of a given answer."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ans.model.cache import ROOM, KeyValues
from ans.model.family import Inputs, Vlm
from ans.model.host import Fetched, sent


@dataclass(frozen=True)
class Pace:
    """How decoding goes on one kind of device. `steps`: the host asks whether answers have ended once in so many steps; what a row says
    behind its end is thrown away. `fixed`: the steps between are all the same work on tensors of one size, which CUDA repeats as a
    graph. `late`: the host looks at the tokens of these steps when the device has been given the next ones, so that it is never without
    work before the last of them."""

    steps: int
    fixed: bool
    late: bool = False


PACES = {"cuda": Pace(8, True, True)}
"""By type of device. Elsewhere the host does the work itself and knows each token at once."""

AT_ONCE = Pace(1, False)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of B prompt beginnings; `mask` (B, P) is 0 where one was padded on the left, which `padded` says of any, `next`
    (B,) the position of the token behind each."""

    cache: KeyValues
    mask: Tensor
    next: Tensor
    padded: bool

    def rows(self, index: Tensor, room: int = ROOM) -> "Prefix":
        """Return a prefix of its own for every row, with room for so many more tokens: the n-th continues beginning `index[n]`. This one
        stays as it is."""
        return Prefix(self.cache.rows(index, room), self.mask[index], self.next[index], self.padded)

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


class Block(NamedTuple):
    """Steps that the device has been given. `batch`: the row at each place of the batch; `values`: those of all steps, on their way."""

    batch: list[int]
    steps: list["Said"]
    values: Fetched


class Said(NamedTuple):
    """What one step gives for B rows: `values` (2, B) in float64, which holds both exactly, are tokens and, where that was asked for, the
    logarithms of their probabilities, else 0; `seg` (B, D) is the state of what was read, and `embeds` (B, 1, D) what is read next."""

    values: Tensor
    seg: Tensor
    embeds: Tensor


def pad_left(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and their mask, each (N, L), padded with zeros on the left."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def prefill(vlm: Vlm, beginnings: Inputs) -> Prefix:
    """Run prompt beginnings once, so that every row that starts with one can continue from it."""
    cache = KeyValues(vlm.language_model.config)
    vlm.run(beginnings, cache)
    return Prefix(cache, beginnings.mask, beginnings.positions.amax((0, 2)) + 1, beginnings.padded)


class Decoding:
    """Greedy decoding step by step: the tokens that rows say are chosen on the device, and read there again.

    With `together` > 1, that many consecutive rows give one answer: the token with the highest mean log-probability.
    """

    def __init__(self, vlm: Vlm, cache: KeyValues, rows: Inputs, confidence: bool, together: int) -> None:
        self.vlm, self.cache, self.inputs, self.confidence, self.together = vlm, cache, rows, confidence, together

    def step(self) -> Said:
        """Let all rows say a token."""
        said, read = self.read(self.inputs), self.inputs
        mask = torch.cat([read.mask, read.mask.new_ones(len(read.mask), 1)], dim=1)
        positions = read.positions[..., -1:] + 1  # rows end on the right: the last position is never padding
        visual = torch.zeros_like(said.embeds[..., 0], dtype=torch.bool)
        self.inputs = Inputs(said.embeds, mask, positions, visual, padded=read.padded)
        return said

    def keep(self, places: list[int]) -> None:
        """Go on with the rows at these places alone."""
        of, index = self.inputs, sent(torch.tensor(places), self.inputs.embeds.device)
        self.cache = self.cache.rows(index)
        self.inputs = Inputs(of.embeds[index], of.mask[index], of.positions[:, index], of.visual[index], padded=of.padded)

    def read(self, inputs: Inputs) -> Said:
        """Run the model and choose the next tokens."""
        normed, seg = (state[:, -1] for state in self.vlm.run(inputs, self.cache))
        logits = self.vlm.language_model.lm_head(normed).float()
        tokens = self.choose(logits)
        likely = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0] if self.confidence else torch.zeros_like(tokens)
        embeds = self.vlm.language_model.get_input_embeddings()(tokens)[:, None]
        return Said(torch.stack([tokens.double(), likely.double()]), seg, embeds)

    def choose(self, logits: Tensor) -> Tensor:
        """Return the tokens (B,) that rows say, by `logits` (B, V)."""
        scores = logits if self.together == 1 else logits.log_softmax(-1).unflatten(0, (-1, self.together)).mean(1)
        return scores.argmax(-1).repeat_interleave(self.together)


@dataclass(frozen=True)
class Chance:
    """By what rows say a random token: of `among` (n,), the ids that may be said, each with its probability among the k most probable
    ones. `noise` (B, T, k), k <= n: Gumbel noise of row and step."""

    among: Tensor
    noise: Tensor

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k highest of `logits` (B, V), and which of `among` they are, each (B, k)."""
        return logits[:, self.among].float().topk(self.noise.shape[-1], dim=-1)


class RandomDecoding(Decoding):
    """Decoding that draws each token. A softmax's draw is the arg-max after Gumbel noise is added."""

    def __init__(self, vlm: Vlm, cache: KeyValues, rows: Inputs, confidence: bool, chance: Chance) -> None:
        super().__init__(vlm, cache, rows, confidence, 1)
        self.chance, self.taken, self.rows = chance, 0, torch.arange(len(chance.noise), device=chance.noise.device)

    def keep(self, places: list[int]) -> None:
        super().keep(places)
        self.rows = self.rows[sent(torch.tensor(places), self.rows.device)]

    def choose(self, logits: Tensor) -> Tensor:
        values, index = self.chance.best(logits)
        place = (values + self.chance.noise[self.rows, self.taken]).argmax(-1, keepdim=True)
        self.taken += 1
        return self.chance.among[index.gather(1, place)[:, 0]]


class FixedDecoding(Decoding):
    """The same by steps that are all the same work on the same tensors, up to the end of the cache's room. On CUDA the second of these
    steps is captured as a graph, which the others repeat: so a step is one launch in place of thousands."""

    room = 0
    """Steps for which there is room."""
    taken = 0
    """Steps since there was the whole room."""
    graph: "torch.cuda.CUDAGraph | None" = None

    def step(self) -> Said:
        if self.inputs.embeds.shape[1] > 1:
            return super().step()
        if self.taken == self.room:
            self._loosen()
            self._fix()
        if self.taken == 1 and self.place.is_cuda:
            self._capture()
        if self.graph is None:
            said = self._fixed()
        else:
            self.graph.replay()
            said = Said(*(of.clone() for of in self.said))  # the next step writes there again
        self.taken += 1
        return said

    def keep(self, places: list[int]) -> None:
        self._loosen()
        super().keep(places)

    def _fix(self) -> None:
        read = self.inputs
        self.place = torch.full((1,), self.cache.length, device=read.mask.device)
        self.room = self.cache.fix(self.place)
        mask = F.pad(read.mask, (0, self.room - 1))  # it ends with the token that is read next
        self.inputs = Inputs(read.embeds.clone(), mask, read.positions.clone(), read.visual, padded=True)

    def _fixed(self) -> Said:
        read = self.inputs
        read.mask.index_fill_(1, self.place, 1)
        said = self.read(read)
        read.embeds.copy_(said.embeds)
        read.positions.add_(1)
        self.place.add_(1)
        return said

    def _capture(self) -> None:
        """Record a step without taking it. Other threads may go on using the device, and nobody waits for it."""
        self.graph, stream, here = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a copy of a weight that is made in a graph is there only when it has run
        stream.wait_stream(here)
        try:
            with torch.cuda.stream(stream):
                self.graph.capture_begin(capture_error_mode="thread_local")
                self.said = self._fixed()
                self.graph.capture_end()
        finally:
            torch.set_autocast_cache_enabled(cached)
        here.wait_stream(stream)

    def _loosen(self) -> None:
        """Make of the tensors what a step of another size begins with."""
        if self.room:
            self.cache.loosen(self.taken)
            mask = F.pad(self.inputs.mask[:, : self.cache.length], (0, 1), value=1)
            self.inputs = replace(self.inputs, mask=mask)
        self.graph, self.room, self.taken = None, 0, 0


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
    chance: Chance | None = None,
) -> list[Generated]:
    """Continue `prefix`, which is used up, by `rows` and decode greedily, or by `chance`, until `ended(ids)` holds for every row;
    `together`: see `Decoding`.

    Rows that have ended leave the batch once they are half of it: sooner, copying the others' cache costs more than it saves. The host
    waits for the device as `Pace` says.
    A `[SEG]` has its state where it is the input, so one that is the very last token allowed has none and gives no mask, as in the
    official code.
    """
    count, pace = len(rows.embeds), PACES.get(rows.embeds.device.type, AT_ONCE)
    fixed = pace.fixed and vlm.repeatable
    decoding = (
        RandomDecoding(vlm, prefix.cache, rows, confidence, chance)
        if chance
        else (FixedDecoding if fixed else Decoding)(vlm, prefix.cache, rows, confidence, together)
    )
    ids: list[list[int]] = [[] for _ in range(count)]
    states: list[list[Tensor]] = [[] for _ in range(count)]
    likely = [0.0] * count
    running = [True] * count
    batch = list(range(count))
    unseen: deque[Block] = deque()

    def look() -> None:
        """Take in the oldest block that nobody has looked at."""
        seen = unseen.popleft()
        for said, (tokens, logarithms) in zip(seen.steps, seen.values.get().tolist(), strict=True):
            for place, number in enumerate(seen.batch):
                if running[number]:
                    if ids[number] and ids[number][-1] == seg_token:
                        states[number].append(said.seg[place])
                    ids[number].append(int(tokens[place]))
                    likely[number] += logarithms[place]
                    running[number] = not ended(ids[number])

    for start in range(0, max_new_tokens, pace.steps):
        steps = [decoding.step() for _ in range(min(pace.steps, max_new_tokens - start))]
        unseen.append(Block(batch, steps, Fetched(torch.stack([said.values for said in steps]))))
        if pace.late and len(unseen) == 1:
            continue
        look()
        places = [place for place, number in enumerate(batch) if running[number]]
        if not places:
            break
        if 2 * len(places) <= len(batch):
            decoding.keep(places)
            batch = [batch[place] for place in places]
    while unseen and any(running):
        look()
    empty = rows.embeds.new_zeros(0, rows.embeds.shape[-1])
    return [
        Generated(row, torch.stack(found) if found else empty, math.exp(total / max(1, len(row))))
        for row, found, total in zip(ids, states, likely, strict=True)
    ]


@torch.no_grad()
def forced(vlm: Vlm, prefix: Prefix, rows: Inputs, length: int) -> Tensor:
    """Return (N, length, D) states, for `[SEG]`, of the last tokens of `rows`, which continue `prefix`. Like `greedy` it uses it up."""
    return vlm.run(rows, prefix.cache).seg[:, -length:]
