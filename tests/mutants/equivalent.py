"""Mutants that no test can kill, because the program does the same with them, each with the reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Equivalent:
    """The mutants of `file` that make the lines `was` into `now`, both without indentation, wherever they stand in the file."""

    file: str
    was: str
    now: str
    reason: str


METRICS = "ans/evaluation/metrics.py"

EQUIVALENT: list[Equivalent] = [
    Equivalent(
        METRICS,
        "self._pixels[name] += int(record[name])",
        "self._pixels[name] -= int(record[name])",
        "only ratios of two such sums are given, and both change their sign",
    ),
    Equivalent(
        METRICS,
        "return generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)",
        "return generator.multinomial(images, np.full(images, 1 / images), size=resamples).astype(None)",
        "numpy's default type is float64",
    ),
    Equivalent(
        METRICS,
        "if first[0].shape != second[0].shape:",
        "if first[1].shape != second[0].shape:",
        "intersections and unions have been found to be of one shape",
    ),
    Equivalent(
        METRICS,
        "if first[0].shape != second[0].shape:",
        "if first[0].shape != second[1].shape:",
        "intersections and unions have been found to be of one shape",
    ),
    Equivalent(
        METRICS, "images = len(first[0])", "images = len(first[1])", "intersections and unions have been found to be of one shape"
    ),
    Equivalent(
        METRICS,
        "whole = np.ones((1, images))",
        "whole = np.ones((2, images))",
        "only the first row's result is used",
    ),
    Equivalent(
        METRICS,
        "return np.asarray(intersections, np.float64).reshape(rows, -1), np.asarray(unions, np.float64).reshape(rows, -1)",
        "return np.asarray(intersections, ).reshape(rows, -1), np.asarray(unions, np.float64).reshape(rows, -1)",
        "the product with float64 counts is float64; whole numbers only make it slower",
    ),
    Equivalent(
        METRICS,
        "return np.asarray(intersections, np.float64).reshape(rows, -1), np.asarray(unions, np.float64).reshape(rows, -1)",
        "return np.asarray(intersections, np.float64).reshape(rows, -1), np.asarray(unions, ).reshape(rows, -1)",
        "the product with float64 counts is float64; whole numbers only make it slower",
    ),
    Equivalent(
        METRICS,
        "return np.asarray(intersections, np.float64).reshape(rows, -1), np.asarray(unions, np.float64).reshape(rows, -1)",
        "return np.asarray(intersections, np.float64).reshape(rows, -2), np.asarray(unions, np.float64).reshape(rows, -1)",
        "numpy takes any negative number for the one length to be found out",
    ),
    Equivalent(
        METRICS,
        "return np.asarray(intersections, np.float64).reshape(rows, -1), np.asarray(unions, np.float64).reshape(rows, -1)",
        "return np.asarray(intersections, np.float64).reshape(rows, -1), np.asarray(unions, np.float64).reshape(rows, -2)",
        "numpy takes any negative number for the one length to be found out",
    ),
]
