"""The model behind HTTP: `python -m ans serve --model FOLDER`, then POST /v1/segment and /v1/describe; /docs says what they take.

What several callers ask at about the same time is answered in one batch, and an image that they share is read once. There is neither
encryption nor a password: put it behind a server that has them before others can reach it. SIGTERM and Ctrl-C let it finish what it
has begun.
"""

import argparse

from ans.cli import model

HELP = "the model behind HTTP"


def arguments(parser: argparse.ArgumentParser) -> None:
    model.loading(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of this machine (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--wait-ms", type=float, default=10, help="how long a batch is collected (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="most questions in a batch (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=64, help="most requests that wait; more get a 503 (default: %(default)s)")
    parser.add_argument("--max-mb", type=float, default=20, help="most megabytes of a request (default: %(default)s)")
    parser.add_argument("--max-megapixels", type=float, default=25, help="most megapixels of an image (default: %(default)s)")
    parser.add_argument(
        "--max-questions", type=int, default=32, help="most expressions, places and regions of a request (default: %(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=60, help="seconds until a request gets a 504 (default: %(default)s)")


def run(chosen: argparse.Namespace) -> None:
    for name in ("batch", "queue", "max_mb", "max_megapixels", "max_questions", "timeout"):
        if getattr(chosen, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')}: must be above 0, is {getattr(chosen, name)}")
    model.needs("serve", "fastapi", "uvicorn")
    segmenter = model.load_model(chosen)
    import uvicorn

    from ans.serving.app import Limits, make_app
    from ans.serving.batches import Batcher

    batcher = Batcher(segmenter, chosen.wait_ms / 1000, chosen.batch, chosen.queue, chosen.max_new_tokens)
    limits = Limits(
        int(chosen.max_mb * 1e6),
        int(chosen.max_megapixels * 1e6),
        chosen.max_questions,
        chosen.timeout,
        chosen.queue + chosen.batch,  # that wait, and that are answered
    )
    uvicorn.run(
        make_app(batcher, str(chosen.model), limits),
        host=chosen.host,
        port=chosen.port,
        timeout_graceful_shutdown=round(chosen.timeout) + 1,
        log_level="info",
        access_log=False,
    )
