"""The process that `stages/train.py` starts."""

from ans.errors import run
from ans.launch import importing

with importing():
    from ans.config import load
    from ans.training.loop import train

if __name__ == "__main__":
    run(lambda: train(load(), guard_params=True))
