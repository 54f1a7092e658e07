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
MASKS = "ans/data/masks.py"
GENERATE = "ans/model/generate.py"

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
    Equivalent(
        MASKS,
        'return coco.merge(rles)["counts"].decode("ascii") if rles else from_array(np.zeros((height, width), np.uint8))',
        'return coco.merge(rles)["counts"].decode("ascii") if rles else from_array(np.zeros((height, width), ))',
        "`from_array` compares with zero first, whatever the type",
    ),
    Equivalent(
        MASKS,
        "starts, ends = points, np.roll(points, -1, axis=0)",
        "starts, ends = points, np.roll(points, +1, axis=0)",
        "the same edges, each from its other end, and every edge is drawn from its left end",
    ),
    Equivalent(
        MASKS,
        "if (x0, y0) > (x1, y1):",
        "if (x0, y0) >= (x1, y1):",
        "only an edge of no length is turned round, which changes nothing",
    ),
    Equivalent(
        MASKS,
        "across, down = (steps, aside) if dx >= abs(dy) else (aside, steps)",
        "across, down = (steps, aside) if dx > abs(dy) else (aside, steps)",
        "on a diagonal both are the same numbers",
    ),
    Equivalent(
        MASKS,
        "columns, rows = x0 + across, y0 + down * (1 if dy >= 0 else -1)",
        "columns, rows = x0 + across, y0 + down * (1 if dy > 0 else -1)",
        "on a level edge `down` is zero",
    ),
    Equivalent(
        MASKS,
        "columns, rows = x0 + across, y0 + down * (1 if dy >= 0 else -1)",
        "columns, rows = x0 + across, y0 + down * (1 if dy >= 1 else -1)",
        "on a level edge `down` is zero",
    ),
    Equivalent(
        MASKS,
        'return coco.encode(np.asfortranarray(mask > 0, np.uint8))["counts"].decode("ascii")',
        'return coco.encode(np.asfortranarray(mask > 0, ))["counts"].decode("ascii")',
        "pycocotools takes bool for bytes of 0 and 1",
    ),
    Equivalent(
        MASKS,
        'codes = np.frombuffer("".join(counts).encode("utf-8", "surrogatepass"), np.uint8)',
        'codes = np.frombuffer("XXXX".join(counts).encode("utf-8", "surrogatepass"), np.uint8)',
        "X is a code itself, so neither the smallest nor the largest code goes out of range",
    ),
    Equivalent(
        GENERATE,
        "padded = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])",
        "padded = rows[0].new_zeros(len(rows), length, rows[0].shape[+1])",
        "both name the second of two dimensions",
    ),
    Equivalent(
        GENERATE,
        "cache = DynamicCache(config=language_model.config)",
        "cache = DynamicCache()",
        "the config only matters where it has sliding windows, which no supported language model has",
    ),
    Equivalent(GENERATE, "tokens = logits.argmax(-1)", "tokens = logits.argmax(+1)", "both name the second of two dimensions"),
    Equivalent(
        GENERATE,
        "log_probability = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()",
        "log_probability = logits.log_softmax(+1).gather(1, tokens[:, None])[:, 0].tolist()",
        "both name the second of two dimensions",
    ),
    Equivalent(
        GENERATE,
        "positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -embeds.shape[1] :]",
        "positions = (mask.cumsum(+1) - 1).clamp(min=0)[:, -embeds.shape[1] :]",
        "both name the second of two dimensions",
    ),
    Equivalent(
        GENERATE,
        "positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -embeds.shape[1] :]",
        "positions = (mask.cumsum(-1) + 1).clamp(min=0)[:, -embeds.shape[1] :]",
        "rotary embeddings see differences of positions only, and all are moved by two",
    ),
    Equivalent(
        GENERATE,
        "inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True",
        "inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=False",
        "transformers fills a cache that it is given either way",
    ),
    Equivalent(
        GENERATE,
        "inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True\n).last_hidden_state",
        "inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache,\n).last_hidden_state",
        "transformers fills a cache that it is given either way",
    ),
]
