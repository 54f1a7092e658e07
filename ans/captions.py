"""Metrics of region captions: pure functions on texts.

A text is compared as its lower-case words, without punctuation. The official CIDEr uses Stanford's PTB tokenizer, a Java program,
which keeps a few things apart that are one word here ("dog's"); on plain captions both give the same words.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 4
"""Words of the longest n-gram that CIDEr compares."""

SIGMA = 6.0
"""Width, in words, of CIDEr-D's penalty for another length."""

NGrams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """Return lower-case words and numbers of a text."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def exact(caption: str, references: Sequence[str]) -> bool:
    """Return whether a caption has the words of one of its references."""
    return words(caption) in [words(reference) for reference in references]


def token_accuracy(caption: str, references: Sequence[str]) -> tuple[int, int]:
    """Return (right, total) words of a caption under free generation, against the reference that fits best.

    Right is a word in its place; the total is the longer text's length, so that words too many and words missing both count.
    """
    said = words(caption)
    counts = []
    for reference in references:
        wanted = words(reference)
        counts.append((sum(a == b for a, b in zip(said, wanted, strict=False)), max(len(said), len(wanted), 1)))
    return max(counts, key=lambda count: count[0] / count[1])


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return CIDEr-D in [0, 10] of each caption; the metric of a split is their mean.

    As in pycocoevalcap (`cider_scorer.py` of tylin/coco-caption; Vedantam et al., CVPR 2015): tf-idf vectors of n-grams of 1 to 4
    words, idf from the references of this very split (one document per caption), counts clipped at the reference's, a Gaussian
    penalty on the difference of lengths (in bigrams, as there), averaged over n and over references, times 10. A split of one
    caption has idf 0 everywhere, and so scores 0.
    Raises `ValueError` where the lists differ in length or a caption has no reference.
    """
    if len(captions) != len(references) or not all(references):
        raise ValueError(f"cider: {len(captions)} captions, {len(references)} lists of references, and none may be empty")
    counted = [[_ngrams(reference) for reference in several] for several in references]
    documents = Counter(ngram for several in counted for ngram in set().union(*several))
    idf = {ngram: math.log(len(captions)) - math.log(count) for ngram, count in documents.items()}
    unseen = math.log(max(len(captions), 1))
    scores = []
    for caption, several in zip(captions, counted, strict=True):
        said = _ngrams(caption)
        scores.append(10 * math.fsum(_similarity(said, wanted, idf, unseen) for wanted in several) / len(several))
    return scores


def _ngrams(text: str) -> NGrams:
    parts = words(text)
    return Counter(tuple(parts[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(parts) - n + 1))


def _similarity(said: NGrams, wanted: NGrams, idf: dict[tuple[str, ...], float], unseen: float) -> float:
    """Return clipped cosine of the tf-idf vectors, averaged over the lengths of n-grams, with the penalty."""
    dot, norm_said, norm_wanted = ([0.0] * LONGEST for _ in range(3))
    for ngram, count in said.items():
        weight, n = idf.get(ngram, unseen), len(ngram) - 1
        dot[n] += min(count, wanted[ngram]) * wanted[ngram] * weight**2
        norm_said[n] += (count * weight) ** 2
    for ngram, count in wanted.items():
        norm_wanted[len(ngram) - 1] += (count * idf[ngram]) ** 2
    cosines = [d / math.sqrt(a * b) if a and b else 0.0 for d, a, b in zip(dot, norm_said, norm_wanted, strict=True)]
    difference = _bigrams(said) - _bigrams(wanted)
    return sum(cosines) / LONGEST * math.exp(-(difference**2) / (2 * SIGMA**2))


def _bigrams(counts: NGrams) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)
