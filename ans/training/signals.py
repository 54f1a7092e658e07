"""SIGTERM, Ctrl-C and what srun hands on: the step in hand is finished and the state saved. Data workers hear none of them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ans.launch import ASKED_BY_SRUN

STOP = (signal.SIGTERM, signal.SIGINT, ASKED_BY_SRUN)


class StopSignal:
    """Notes that the training was asked to stop."""

    def __init__(self) -> None:
        self.received = False
        for number in STOP:
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.received = True


@contextmanager
def blocked_in_workers() -> Iterator[None]:
    """Block a signal: processes that are started within inherit what is blocked here.

    A terminal and a batch system send these signals to the workers too, and a worker that dies of them takes the training along
    before it has saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_the_training(_: int) -> None:
    """End a worker at a SIGTERM that the training itself sends, as Python does to its workers when it exits. The training need not
    be the parent of this process: from Python 3.14 on, a server that forks is."""
    training = multiprocessing.parent_process()
    assert training is not None, "this is not a worker"

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
