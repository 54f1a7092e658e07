"""What a run needs and does not have: commits, packages, data sets, splits. Each comes with how to get it."""

import re
from importlib.util import find_spec
from pathlib import Path

from ans.config import Config
from ans.config.load import index_of
from ans.config.schema import SUBSET
from ans.config.tasks import TaskSettings
from ans.data.arrow import is_absent, read_index
from ans.data.readers import ListingChanged, check_listing
from ans.planning.published import COCO, PUBLISHED
from ans.workspace import Workspace


def tasks_of(config: Config) -> tuple[dict[str, TaskSettings], list[str]]:
    """Return the settings of the tasks, and what is wrong with them."""
    try:
        return config.tasks, []
    except ValueError as error:
        return {}, [str(error)]


def trust(config: Config) -> list[str]:
    """Return the commit and the checksums by which the base is trusted, and a missing folder of weights."""
    weights, found = config.weights, []
    if weights.source == "hub" and not re.fullmatch(r"[0-9a-f]{40}", weights.revision or ""):
        found.append(
            f"weights.revision: the commit of {weights.location} that you trust, 40 digits; they are listed at "
            f"https://huggingface.co/{weights.location}/commits/main"
        )
    if weights.source == "url" and not weights.sha256:
        found.append(f"weights.sha256: the files below {weights.location} with their sha256; sha256sum prints it")
    if weights.source in ("embedded", "path") and not Path(weights.location).is_dir():
        found.append(f"weights.location: there is no folder {weights.location}")
    if weights.sam2 is not None and not re.fullmatch(r"[0-9a-f]{64}", weights.sam2.sha256):
        found.append(f"weights.sam2.sha256: the sha256 of {weights.sam2.location}, 64 digits; sha256sum prints it")
    return found


def packages(config: Config) -> list[str]:
    """Return the packages that these settings need and that are not installed."""
    wanted = config.train.four_bit or config.evaluate.four_bit or config.train.optimizer == "paged_adamw"
    return ["bitsandbytes: not installed; pip install bitsandbytes"] if wanted and find_spec("bitsandbytes") is None else []


def _is_world(config: Config, workspace: Workspace) -> bool:
    return (workspace.root / config.paths.root).resolve() == workspace.world.resolve()


def data_sets(config: Config, workspace: Workspace) -> list[str]:
    """Return the root, and each data set that the settings name and that is missing."""
    root, world = Path(config.paths.root), _is_world(config, workspace)
    if world and config.weights.source == "embedded":
        return []  # stage `world` makes it
    found = []
    if world:
        found.append("paths.root: the folder of the data sets; now it is the synthetic world, which this preset cannot use")
    elif not root.is_dir():
        found.append(f"paths.root: there is no folder {root}")
    coco = False
    for name in dict.fromkeys(map(_source, _wanted(config))):
        source = config.source(name)
        if source is None:  # an unknown index; reported with the settings
            continue
        if world or not (root / source.folder).is_dir():
            of = PUBLISHED.get(source.reader)
            coco = coco or (of is not None and of.coco)
            about = f" ({of.size}; {of.link})" if of else " (your own data, docs/your-data.md)" if source.reader == "own" else ""
            found.append(f"data set {name}: {'' if world else f'{root}/'}{source.folder}{about}")
    if coco:
        found.append(f"COCO's images, train2014, for RefCOCO and the like ({COCO.size}; {COCO.link})")
    return found


def _wanted(config: Config) -> list[str]:
    """Return the indexes that the settings name."""
    tasks, _ = tasks_of(config)
    training = [index for of in tasks.values() for index in of.indexes()]
    return [*training, *(index_of(split) for split in validated(config)), *config.evaluation_indexes()]


def _source(index: str) -> str:
    return "sa1b" if index == SUBSET else index


def validated(config: Config) -> list[str]:
    """Return the split that the training evaluates on the way, if any."""
    return [config.train.validation.split] if config.train.validation else []


def not_indexed(name: str, config: Config, workspace: Workspace) -> str | None:
    """Return why the index cannot be read yet; None where it can, and is of the data below `paths.root`."""
    path = workspace.index(name)
    if not path.is_file() or is_absent(path):
        return "not indexed yet"
    try:
        check_listing(read_index(path), config.paths.root)
    except (ListingChanged, OSError):
        return "indexed from other data"
    return None


def look_up(split: str, config: Config, workspace: Workspace) -> tuple[str, str | None]:
    """Return what is known of a split, and what is wrong with it."""
    name, _, part = split.rpartition("_")
    if (reason := not_indexed(name, config, workspace)) is not None:
        return reason, None
    splits = sorted(read_index(workspace.index(name)).splits())
    if part in splits:
        return "present", None
    return "missing", f"split {split}: {name} has no region of it; its splits are {', '.join(f'{name}_{of}' for of in splits)}"


def command(config: Config, workspace: Workspace) -> str:
    """Return what starts the run, with a placeholder for each setting that is missing."""
    parts = ["dvc exp run", f"-S preset={config.preset}"]
    if config.weights.source != "embedded":
        root = "/data" if _is_world(config, workspace) else config.paths.root
        parts.append(f"-S paths.root={root}")
    if config.weights.source == "hub":
        parts.append(f"-S weights.revision={config.weights.revision or '$COMMIT'}")
    if config.weights.source != "embedded":
        parts.append(f"-S launch.processes={config.launch.processes if config.launch.processes > 1 else '$GPUS'}")
    return " ".join(parts)
