"""What is mutated, and by which tests it has to be caught. When a module moves, its line here changes and nothing else."""

MUTATED = (
    "ans/objectives",
    "ans/tasks",
    "ans/training",
    "ans/checkpoints",
    "ans/formats",
    "ans/model/keys.py",
    "ans/model/generate.py",
    "ans/evaluation/metrics.py",
    "ans/data/masks.py",
)
"""Files, and folders with every module in them."""

LEFT_OUT: tuple[str, ...] = ()
"""Files of these folders that are not mutated, each with the reason beside it."""

TESTS = (
    "tests/config",
    "tests/training",
    "tests/tasks",
    "tests/objectives",
    "tests/checkpoints",
    "tests/evaluation",
    "tests/model",
    "tests/data",
)
"""Where the tests lie that may kill a mutant. Those marked `slow` are not run."""

THRESHOLD = 0.90
"""The smallest acceptable share of killed mutants among those that are not equivalent."""

SAMPLE, SEED = 300, 0
"""How many mutants `make mutants` draws, and the seed that it draws them with."""

PATIENCE = 30.0
"""Seconds that a mutant may take on top of five times what its tests take on the unchanged code."""

MEMORY = 6 * 2**30
"""Bytes of data that the tests of one mutant may hold; beyond that they get a `MemoryError`, which kills the mutant."""
