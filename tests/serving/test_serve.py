"""`python -m ans serve`: over a socket, the same answers as the `Segmenter` gives; batches; limits; a stop that loses nothing."""

import asyncio
import base64
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ans.model.places import Place
from ans.model.segmenter import Segmenter
from ans.serving.batches import Asked, Batcher, Full, answer

TINY = "weights/tiny"
WORDS = ["red circle", "blue square on the left"]


def picture(left: int = 80) -> Image.Image:
    rows, columns = np.mgrid[:90, :120]
    pixels = np.full((90, 120, 3), 128, np.uint8)
    pixels[(rows - 45) ** 2 + (columns - left) ** 2 < 20**2], pixels[30:60, 10:40] = (230, 20, 20), (20, 20, 230)
    return Image.fromarray(pixels)


def encoded(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return Segmenter.from_pretrained(TINY)


def test_a_batch_is_answered_as_each_alone_and_reads_an_image_once(model: Segmenter) -> None:
    one, two = picture(), picture(60)
    disc = np.asarray(one)[..., 0] > 200
    batch = [
        Asked(one, "one", WORDS[:1], [Place(points=[(80, 45)])]),
        Asked(two, "two", WORDS),
        Asked(one, "one", WORDS[1:]),
        Asked(one, "one", regions=[disc, disc]),
        Asked(two, "two", places=[Place(box=(10, 30, 40, 60)), Place(points=[(60, 45)])]),
    ]
    batcher = Batcher(model, max_new_tokens=24)
    found = answer(model, batch, 24, batcher.counts)
    assert batcher.counts.images == 2
    for asked, together in zip(batch, found, strict=True):
        (alone,) = answer(model, [asked], 24)
        assert [len(together.segmented), len(together.pointed), len(together.captions)] == [
            len(asked.expressions), len(asked.places), len(asked.regions),
        ]  # fmt: skip
        assert [x.answer for x in together.segmented] == [
            x.answer for x in alone.segmented
        ] and together.captions == alone.captions
        masks = zip(
            [*(x.mask for x in together.segmented), *together.pointed],
            [*(x.mask for x in alone.segmented), *alone.pointed],
            strict=True,
        )
        assert all((a != b).sum() <= 2 for a, b in masks), "a pixel at an edge may differ, see docs/measured.md"


def test_one_request_cannot_fail_another_and_the_queue_is_bounded(model: Segmenter) -> None:
    batcher = Batcher(model, wait=0.3, longest=3, max_new_tokens=24)
    with batcher.running():
        wrong = batcher.ask(Asked(picture(), "one", places=[Place(points=[(500, 5)])]))
        right = batcher.ask(Asked(picture(), "one", WORDS))
        left = batcher.ask(Asked(picture(), "one", WORDS))
        assert left.cancel()
        with pytest.raises(Full, match="3 requests are waiting"):
            batcher.ask(Asked(picture(), "one", WORDS))
        assert len(right.result(60).segmented) == 2
        with pytest.raises(ValueError, match="outside the image"):
            wrong.result(60)
        last = batcher.ask(Asked(picture(), "one", WORDS))
    assert last.done() and last.result().segmented, "what waits when it is stopped is answered"
    assert (batcher.counts.failures, batcher.counts.requests) == (1, 2)
    with pytest.raises(Full, match="stopping"):
        batcher.ask(Asked(picture(), "one", WORDS))


async def call(app: Any, body: Any, path: str = "/v1/segment", receive: Any = None) -> tuple[int, Any]:
    """Status and answer to a request, without a socket. `receive`: in the place of a body that is there at once."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    said: list[dict[str, Any]] = []

    async def at_once() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
        "http_version": "1.1",
    }
    try:
        await app(scope, receive or at_once, send)
    except FloatingPointError:
        pass  # uvicorn logs it
    text = b"".join(message.get("body", b"") for message in said[1:]).decode()
    return said[0]["status"], text if body is None else json.loads(text)


def at_once(app: Any, *requests: Any) -> list[tuple[int, Any]]:
    async def all_of_them() -> list[tuple[int, Any]]:
        async with app.router.lifespan_context(app):
            return await asyncio.gather(*(call(app, *request) for request in requests))

    return asyncio.run(all_of_them())


@pytest.mark.slow
def test_a_failure_of_ours_a_full_queue_and_a_long_wait_are_said(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("ans.serving.app", reason="the extra `serve` is not installed: pip install '.[serve]'")
    body = {"image": encoded(picture()), "expressions": WORDS}
    made = app.make_app(Batcher(model, wait=0.5, longest=1), "tiny", app.Limits(seconds=0.1))
    found = at_once(made, (body,), (body,))
    assert sorted(status for status, _ in found) == [503, 504]
    assert {said["error"].split(";")[0] for _, said in found} == {"1 requests are waiting already", "no answer within 0.1 s"}

    def broken(*_: Any) -> None:
        raise FloatingPointError("of ours")

    monkeypatch.setattr(model, "read", broken)
    made = app.make_app(Batcher(model), "tiny")
    assert at_once(made, (body,)) == [(500, {"error": "FloatingPointError in the server; its log says more"})]
    (_, counted) = asyncio.run(call(made, None, "/metrics"))
    assert 'ans_http_requests_total{route="/v1/segment",status="500"} 1\n' in counted


def test_what_would_fill_the_memory_is_refused_before_it_is_kept(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("ans.serving.app", reason="the extra `serve` is not installed: pip install '.[serve]'")
    batcher = Batcher(model)
    batcher.counts.questions = 12_345_678
    made = app.make_app(batcher, "tiny", app.Limits(bytes=20_000, questions=2, seconds=0.2, requests=1))

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    found = at_once(made, (b"{", "/v1/segment", never), (b"{",), (None, "/health"))
    assert [status for status, _ in found] == [408, 503, 200]
    assert "did not come within 0.2 s" in found[0][1]["error"] and "1 requests are here already" in found[1][1]["error"]
    with pytest.raises(IndexError):  # no answer
        asyncio.run(call(made, b"{", "/v1/segment", gone))
    assert asyncio.run(call(made, b" " * 20_001)) == (413, {"error": "the request has more than 0.02 MB"})
    _, counted = asyncio.run(call(made, None, "/metrics"))
    for status in (408, 413, 503):
        assert f'ans_http_requests_total{{route="other",status="{status}"}} 1\n' in counted
    assert "ans_questions_total 12345678\n" in counted, "every digit: six of them would stand still while it grows"

    # A small file of many pixels: the size is compared first. And nothing at all is decoded where too much is asked.
    many = encoded(Image.new("1", (3000, 3000)))
    decoded: list[tuple[int, int]] = []
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.size))
    with pytest.raises(ValueError, match=r"masks\.0: is 3000 x 3000 pixels, the image 120 x 90"):
        app._region(many, (120, 90), 0)
    asked = app.DescribeRequest(image="no image", masks=[many], points=[[1, 1], [2, 2]])
    with pytest.raises(app.Refused, match="3 questions in one request; at most 2"):
        app.read(asked, app.Limits(questions=2))
    assert not decoded
    status, said = asyncio.run(call(made, {"image": "", "points": [[0, 0]] * 1001}))
    assert status in (413, 422) and "1000" in said["error"]


class Served:
    """A server of its own process, on a free port."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "ans", "serve", "--model", TINY, "--port", "0", "--max-new-tokens", "24", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if match := re.search(r"running on (http://\S+)", line):
                self.url = match[1]
                return
        raise AssertionError("".join(said))

    def get(self, path: str) -> str:
        with urlopen(self.url + path, timeout=60) as response:
            return response.read().decode()

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urlopen(Request(self.url + path, data, {"Content-Type": "application/json"}), timeout=60) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            return error.code, json.load(error)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed: pip install '.[serve]'")
    served = Served("--wait-ms", "200", "--max-mb", "1", "--max-megapixels", "0.5", "--max-questions", "4")
    yield served
    if served.process.poll() is None:
        served.process.kill()


@pytest.mark.slow
def test_over_http_as_by_hand(server: Served, model: Segmenter) -> None:
    image, disc = picture(), np.asarray(picture())[..., 0] > 200
    body = {"image": encoded(image), "expressions": WORDS, "points": [[80, 45]], "boxes": [[10, 30, 40, 60]]}
    status, found = server.post("/v1/segment", body)
    assert status == 200 and (found["width"], found["height"]) == (120, 90) and found["unknown_words"] == []
    places = [Place(points=[(80, 45)]), Place(box=(10, 30, 40, 60))]
    masks = [*(one.mask for one in model.segment([image], [WORDS], 24)[0]), *model.segment_at([image], [places])[0]]
    for result, mask, what in zip(found["results"], masks, [*WORDS, *map(str, places)], strict=True):
        read = coco.decode(result["mask"]).astype(bool)
        assert result["what"] == what and result["found"] == mask.any() and result["area"] == read.sum()
        assert read.shape == mask.shape and (read != mask).sum() <= 2
    status, pngs = server.post("/v1/segment", body | {"format": "png"})
    for png, rle in zip(pngs["results"], found["results"], strict=True):
        pixels = np.asarray(Image.open(BytesIO(base64.b64decode(png["mask"]))).convert("L"))
        assert np.array_equal(pixels > 0, coco.decode(rle["mask"]) > 0) and set(np.unique(pixels)) <= {0, 255}
    rle = coco.encode(np.asfortranarray(disc.astype(np.uint8)))
    regions = [encoded(Image.fromarray(disc)), {"size": rle["size"], "counts": rle["counts"].decode()}]
    status, described = server.post("/v1/describe", {"image": "data:image/png;base64," + encoded(image), "masks": regions})
    assert status == 200 and described["captions"] == model.describe([image], [[disc, disc]], 24)[0]
    _, unknown = server.post("/v1/segment", {"image": encoded(image), "expressions": ["the zebra"]})
    assert unknown["unknown_words"] == ["zebra"]


@pytest.mark.slow
def test_what_is_asked_at_once_is_one_batch(server: Served) -> None:
    def counters() -> dict[str, float]:
        return {line.split()[0]: float(line.split()[1]) for line in server.get("/metrics").splitlines()}

    before, body = counters(), {"image": encoded(picture()), "expressions": WORDS}
    with ThreadPoolExecutor(8) as pool:
        assert [status for status, _ in pool.map(lambda _: server.post("/v1/segment", body), range(8))] == [200] * 8
    after = counters()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["ans_requests_total"] == 8 and grown["ans_questions_total"] == 16
    assert grown["ans_batches_total"] == grown["ans_images_total"] <= 3
    assert grown['ans_http_requests_total{route="/v1/segment",status="200"}'] == 8


@pytest.mark.slow
def test_wrong_requests_are_named(server: Served) -> None:
    image = encoded(picture())
    big = encoded(Image.new("RGB", (1000, 501)))
    for path, body, status, words in (
        ("segment", {"image": "?", "expressions": ["a"]}, 422, "image: is not base64"),
        ("segment", {"image": base64.b64encode(b"no image").decode(), "expressions": ["a"]}, 422, "image: not a readable image"),
        ("segment", {"image": image}, 422, "nothing is asked"),
        ("segment", {"image": image, "expression": ["a"]}, 422, "expression: Extra inputs are not permitted"),
        ("segment", {"image": image, "expressions": [" "]}, 422, "expressions.0: "),
        ("segment", {"image": image, "points": [[120, 5]]}, 422, "outside the image, which is 120 x 90"),
        ("segment", {"image": image, "boxes": [[9, 9, 5, 5]]}, 422, "has no area"),
        ("segment", {"image": image, "expressions": ["a"] * 5}, 413, "5 questions in one request; at most 4"),
        ("segment", {"image": big, "expressions": ["a"]}, 413, "has 1000 x 501 pixels; at most 0.5 million"),
        ("segment", b" " * 1_000_001, 413, "more than 1 MB"),
        ("segment", b"{", 422, "JSON"),
        ("describe", {"image": image, "masks": [big]}, 422, "masks.0: is 1000 x 501 pixels, the image 120 x 90"),
        ("describe", {"image": image, "masks": [{"size": [90, 120], "counts": "0"}]}, 422, "masks.0: "),
        ("describe", {"image": image, "masks": [encoded(Image.new("L", (120, 90)))]}, 422, "masks.0: has no pixel"),
    ):
        got, said = server.post(f"/v1/{path}", body)
        assert (got, list(said)) == (status, ["error"]) and words in said["error"], (body, said)
    assert server.post("/v1/nothing", {}) == (404, {"error": "Not Found"})
    assert server.post("/health", {}) == (405, {"error": "Method Not Allowed"})
    assert json.loads(server.get("/health"))["status"] == "ok"


@pytest.mark.slow
def test_the_page_works_without_the_internet(server: Served) -> None:
    page, schema = server.get("/docs"), json.loads(server.get("/openapi.json"))
    assert set(schema["paths"]) == {"/v1/segment", "/v1/describe", "/health", "/metrics"}
    assert (
        "POST /v1/segment" in page and "how masks come: COCO run lengths" in page and not re.findall("(?:src|href)=.?http", page)
    )


@pytest.mark.slow
def test_it_stops_when_what_it_has_begun_is_done(server: Served) -> None:
    """The last test of this server."""
    body = {"image": encoded(picture()), "expressions": WORDS}
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(server.post, "/v1/segment", body)
        time.sleep(0.1)  # it waits 0.2 s for others
        status = server.stop()
        assert begun.result()[0] == 200
    assert status in (0, -signal.SIGTERM), "uvicorn hands the signal on once all is done"
