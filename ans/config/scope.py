"""What an evaluation asks, whether of the trained variants or while a training goes on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """What an evaluation asks. Made by `Evaluate.scope` and `ValidationSettings.scope`, not read from a file."""

    splits: tuple[str, ...]
    captions: tuple[str, ...] = ()
    max_samples: int | None = None
    max_texts_per_image: int | None = None

    @property
    def capped(self) -> bool:
        """Whether only a part of each split is evaluated."""
        return self.max_samples is not None or self.max_texts_per_image is not None

    def split_results(self) -> tuple[str, ...]:
        """Return the names under which the results of `splits` are kept. Those of a part of a split have its size in them
        (images x expressions per image), so that they never stand in the place of a full result."""
        return tuple(self._name(split) for split in self.splits)

    def caption_results(self) -> tuple[str, ...]:
        """Return the names under which the captioning results of `captions` are kept; see `split_results`."""
        return tuple(self._name(f"{split}_captions") for split in self.captions)

    def _name(self, split: str) -> str:
        return f"{split}_capped_{self.max_samples or 'all'}x{self.max_texts_per_image or 'all'}" if self.capped else split
