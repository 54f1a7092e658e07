"""Requests per second of `python -m ans serve` over loopback: `python -m tests.bench.serve [--quick] [--model FOLDER]`.

same_over_single   requests per second of 16 callers who ask about one image, over one caller alone
other_over_single  the same, each caller with an image of its own

Each request has one expression. The callers share the processor with the server.
"""

import argparse
import base64
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from tests.bench import add_scales

CALLERS = 16


def body(number: int) -> bytes:
    rows, columns = np.mgrid[:240, :320]
    pixels = np.full((240, 320, 3), 128, np.uint8)
    pixels[(rows - 120) ** 2 + (columns - 60 - 10 * number) ** 2 < 40**2] = (230, 20, 20)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return json.dumps({"image": base64.b64encode(buffer.getvalue()).decode(), "expressions": ["red circle"]}).encode()


def ask(url: str, data: bytes) -> float:
    start = time.perf_counter()
    with urlopen(Request(f"{url}/v1/segment", data, {"Content-Type": "application/json"}), timeout=120) as response:
        assert json.load(response)["results"]
    return time.perf_counter() - start


def measure(url: str, bodies: list[bytes], callers: int, requests: int) -> dict[str, float]:
    """Requests per second, and the median and the 95th percentile of a request's milliseconds."""
    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        seconds = list(pool.map(lambda number: ask(url, bodies[number % len(bodies)]), range(requests)))
    rate = requests / (time.perf_counter() - start)
    return {"rate": rate, "median_ms": 1000 * float(np.median(seconds)), "p95_ms": 1000 * float(np.quantile(seconds, 0.95))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scales(parser, "48 requests in place of 320")
    parser.add_argument("--model", default="weights/tiny")
    chosen = parser.parse_args()
    requests = {"full": 320, "quick": 48, "smoke": 8}[chosen.scale]
    command = [sys.executable, "-m", "ans", "serve", "--model", chosen.model, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next(match[1] for line in process.stderr if (match := re.search(r"running on (http://\S+)", line)))
        bodies = [body(number) for number in range(CALLERS)]
        ask(url, bodies[0])
        found = {
            "single": measure(url, bodies[:1], 1, requests // 4),
            "same": measure(url, bodies[:1], CALLERS, requests),
            "other": measure(url, bodies, CALLERS, requests),
        }
    finally:
        process.terminate()
        process.wait(60)
    print(f"{'callers':<32}{'requests/s':>12}{'median ms':>12}{'95 % ms':>12}")
    for name, about in (("single", "1"), ("same", f"{CALLERS}, one image"), ("other", f"{CALLERS}, an image each")):
        print(f"{about:<32}" + "".join(f"{value:>12.1f}" for value in found[name].values()))
    print(json.dumps({f"{name}_over_single": found[name]["rate"] / found["single"]["rate"] for name in ("same", "other")}))


if __name__ == "__main__":
    main()
