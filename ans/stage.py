"""How a stage script starts.

One run of DVC has one set of parameters. DVC itself reads params.yaml again at every stage, and another command may have changed
it in between: `dvc exp run -S` during a run is refused, but its setting stays behind.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import yaml

from ans.config.fields import ConfigError
from ans.errors import run
from ans.files import replacing
from ans.record import recorded
from ans.workspace import Workspace

PARAMS, PRESETS = Path("params.yaml"), Path("ans/presets")


def run_stage(main: Callable[[], None]) -> None:
    """Call `main` as `ans.errors.run` does, and stop where params.yaml is not what this run of DVC began with."""

    def guarded() -> None:
        with one_set_of_parameters(), _recorded():
            main()

    run(guarded)


@contextmanager
def one_set_of_parameters() -> Iterator[None]:
    """Raise `ConfigError`, before and after the work within, when params.yaml is not what it was when the first stage of this run
    of DVC began. Does nothing where no DVC started this process."""
    if (record := _record()) is None:
        yield
        return
    if not record.exists():
        for other in record.parent.glob("parameters-*.json"):  # of runs that have ended
            if not psutil.pid_exists(int(other.stem.split("-")[1])):
                other.unlink(missing_ok=True)
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(_read()), encoding="utf-8")
    _compare(record)
    yield
    _compare(record)


def _recorded() -> AbstractContextManager[None]:
    """Return when and where the stage ran is written down, where DVC started it."""
    if "DVC_STAGE" not in os.environ:
        return nullcontext()
    return recorded(Workspace(Path(os.environ["DVC_ROOT"])).records, os.environ["DVC_STAGE"])


def _record() -> Path | None:
    """Return where this run's parameters are written down: by the process of DVC, and when that began."""
    if (dvc := dvc_process()) is None:
        return None
    began = hashlib.sha256(str(dvc.create_time()).encode()).hexdigest()[:8]
    return Workspace(Path(os.environ["DVC_ROOT"])).records / f"parameters-{dvc.pid}-{began}.json"


def dvc_process() -> psutil.Process | None:
    """Return the DVC that started this process as one of its stages; a shell may stand between."""
    if "DVC_STAGE" not in os.environ:
        return None
    for parent in psutil.Process().parents():
        if any(Path(part).name == "dvc" or part == "dvc" for part in parent.cmdline()[:3]):
            return parent
    return None


def _read() -> dict[str, Any]:
    """Return all parameters that results depend on, the chosen preset's included, by dotted path."""
    values = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    preset = PRESETS / f"{values.get('preset')}.yaml"
    of_preset = yaml.safe_load(preset.read_text(encoding="utf-8")) if preset.exists() else {}
    return _flat({key: value for key, value in values.items() if key != "launch"}, "") | _flat(of_preset, f"{preset}: ")


def _flat(values: dict[str, Any], path: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return flat


def _compare(record: Path) -> None:
    before, now = json.loads(record.read_text(encoding="utf-8")), _read()
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        what = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed[:5])
        raise ConfigError(
            f"params.yaml was changed while this run of DVC went on ({what}), perhaps by another `dvc exp run -S`. Put it back "
            "and start again to go on, or start again as it is to run with the change; finished stages are kept"
        )
