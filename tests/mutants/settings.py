"""What is mutated, and by which tests it has to be caught. When a module moves, its line here changes and nothing else."""

MUTATED = (
    "ans/training",
    "ans/objectives",
    "ans/checkpoints",
    "ans/evaluation/metrics.py",
    "ans/model/generate.py",
    "ans/data/masks.py",
)
"""Files, and folders with every module in them."""

LEFT_OUT = ("ans/training/tiny_base.py", "ans/training/tiny_lisa.py")
"""The recipes of the embedded weights. Their result is committed with its checksums; only training anew would show a change."""

TESTS = ("tests/training", "tests/objectives", "tests/checkpoints", "tests/evaluation", "tests/model", "tests/data")
"""Where the tests lie that may kill a mutant. Those marked `slow` are not run."""

THRESHOLD = 0.90
"""The smallest acceptable share of killed mutants among those that are not equivalent."""

SAMPLE, SEED = 300, 0
"""How many mutants `make mutants` draws, and the seed that it draws them with."""

PATIENCE = 30.0
"""Seconds that a mutant may take on top of five times what its tests take on the unchanged code."""

MEMORY = 6 * 2**30
"""Bytes of data that the tests of one mutant may hold; beyond that they get a `MemoryError`, which kills the mutant."""
