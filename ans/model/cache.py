"""Keys and values of a language model, in tensors with room for the tokens to come."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

ROOM = 64
"""Places that are made at a time. So a token moves what is there once in 64 steps, and where attention reads empty places too, they are
at most so many."""


class Layer(CacheLayerMixin):
    """(B, heads, K, D) of one layer, of which the first `length` places are taken.

    With `place` (1,) the next token's place is the number that lies there, on the device, and attention is given all places, taken or
    not: then every step is the same work on the same tensors.
    """

    keys: Tensor  # pyrefly: ignore[bad-override-mutable-attribute]
    values: Tensor  # pyrefly: ignore[bad-override-mutable-attribute]

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.place: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add tokens, (B, heads, n, D), and return what attention reads."""
        if self.place is not None:
            self.keys.index_copy_(2, self.place, key_states)
            self.values.index_copy_(2, self.place, value_states)
            return self.keys, self.values
        start, self.length = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        else:
            if self.length > self.keys.shape[2]:
                self.move(start, self.length + ROOM)
            self.keys[:, :, start : self.length] = key_states
            self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the first tokens, in tensors that hold nothing else."""
        self.keys, self.values, self.is_initialized = key_states.contiguous(), value_states.contiguous(), True

    def move(self, length: int, reach: int, rows: Tensor | None = None) -> None:
        """Put the first `length` tokens, of all rows or of some, into tensors with `reach` places."""
        for name in ("keys", "values"):
            old = cast(Tensor, getattr(self, name))[:, :, :length]
            new = old.new_empty(len(old if rows is None else rows), old.shape[1], reach, old.shape[3])
            if rows is None:
                new[:, :, :length] = old
            else:
                torch.index_select(old, 0, rows, out=new[:, :, :length])
            setattr(self, name, new)

    def get_seq_length(self) -> int:
        """Return how many tokens there are."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that so many more tokens attend to."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no largest length."""
        return -1


class KeyValues(Cache):
    """The cache of a language model."""

    layers: list[Layer]  # pyrefly: ignore[bad-override-mutable-attribute]

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(layers=[Layer() for _ in range(cast(int, config.num_hidden_layers))])

    @property
    def length(self) -> int:
        return self.layers[0].length

    @property
    def reach(self) -> int:
        """How many tokens there are places for."""
        return self.layers[0].keys.shape[2]

    def rows(self, index: Tensor, room: int = ROOM) -> "KeyValues":
        """Return a cache of its own for every row, the n-th what row `index[n]` has here, with room for so many more tokens."""
        chosen = object.__new__(KeyValues)
        chosen.__dict__ |= self.__dict__
        chosen.layers = []
        for layer in self.layers:
            other = Layer()
            other.keys, other.values, other.length, other.is_initialized = layer.keys, layer.values, layer.length, True
            other.move(layer.length, layer.length + room, index)
            chosen.layers.append(other)
        return chosen

    def fix(self, place: Tensor) -> int:
        """From now on let `place` say where tokens go, until `loosen`; return for how many there are places."""
        full = self.length == self.reach
        for layer in self.layers:
            if full:
                layer.move(layer.length, layer.length + ROOM)
            for tensor in (layer.keys, layer.values):  # what the mask leaves out is multiplied by 0, and so has to be a number
                tensor[:, :, layer.length :] = 0
            layer.place = place
        return self.reach - self.length

    def loosen(self, taken: int) -> None:
        """Count tokens again, of which so many have been added since `fix`."""
        for layer in self.layers:
            layer.place = None
            layer.length += taken
