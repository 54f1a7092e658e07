"""Stage `weights`: the preset's base weights -> models/base, in shards by module group."""

from ans.config import load
from ans.launch import importing
from ans.stage import run_stage
from ans.workspace import Workspace

with importing():
    from ans.checkpoints.base import make_base


def main() -> None:
    make_base(load().weights, Workspace().base)


if __name__ == "__main__":
    run_stage(main)
