"""The HTTP interface of `python -m ans serve`: JSON in, JSON out, errors as `{"error": ...}`."""

import asyncio
import base64
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from ans.data import masks
from ans.data.images import BROKEN_IMAGE, decoded, identify
from ans.model.places import Place
from ans.serving.batches import Answered, Asked, Batcher, Full, key_of
from ans.version import __version__

LONGEST_TEXT = 8000
"""Characters of an expression; as in a user's own data."""
LONGEST_LIST = 1000
"""Of anything in a request: what is longer is refused before it is looked at. `Limits.questions` is what is answered."""


@dataclass(frozen=True)
class Limits:
    """Of one request: `bytes` of its body, `pixels` of its image, `questions` (expressions, places and regions), `seconds` for its body
    to come, and as many for the answer. `requests`: at once, those whose body is still coming among them."""

    bytes: int = 20_000_000
    pixels: int = 25_000_000
    questions: int = 32
    seconds: float = 60.0
    requests: int = 128


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


Point = Annotated[list[float], Field(min_length=2, max_length=2)]
Box = Annotated[list[float], Field(min_length=4, max_length=4)]
Base64 = Annotated[str, Field(description="a file (JPEG, PNG, WebP, ...) in base64")]


class Rle(Strict):
    """A mask as compressed COCO run lengths, as pycocotools reads it."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="height, width")]
    counts: str


class Pointed(Strict):
    image: Base64
    points: list[Point] = Field(
        [], max_length=LONGEST_LIST, description="x, y in pixels of the upright image from its upper left corner; an object each"
    )
    boxes: list[Box] = Field([], max_length=LONGEST_LIST, description="x0, y0, x1, y1; an object each")

    @property
    def places(self) -> list[Place]:
        return [*(Place(points=[point]) for point in self.points), *(Place(box=box) for box in self.boxes)]


class SegmentRequest(Pointed):
    expressions: list[Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, pattern=r"\S")]] = Field(
        [], max_length=LONGEST_LIST
    )
    format: Literal["rle", "png"] = Field("rle", description="how masks come: COCO run lengths, or a PNG in base64 (255 inside)")


class DescribeRequest(Pointed):
    masks: list[Rle | Base64] = Field(
        [], max_length=LONGEST_LIST, description="regions: COCO run lengths, or a PNG in base64 that is not 0 inside"
    )


class FoundMask(BaseModel):
    what: str = Field(description="the expression, or the place")
    answer: str | None = Field(description="what the model said; null for a place")
    found: bool = Field(description="false: the answer has no [SEG], or the mask no pixel")
    area: int = Field(description="pixels of the mask")
    mask: Rle | str


class SegmentResponse(BaseModel):
    width: int
    height: int
    results: list[FoundMask] = Field(description="of the expressions, then the points, then the boxes")
    unknown_words: list[str] = Field(
        description="words for which the model has no token; the tiny model knows coloured shapes alone"
    )


class DescribeResponse(BaseModel):
    captions: list[str] = Field(description="of the masks, then the points, then the boxes")


def make_app(batcher: Batcher, name: str, limits: Limits = Limits()) -> FastAPI:
    """Return the application; its lifespan is that of the worker."""
    answered: Counter[tuple[str, int]] = Counter()
    seconds: Counter[str] = Counter()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with batcher.running():
            yield

    app = FastAPI(title="ANS", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(
        Counted, answered=answered, seconds=seconds
    )  # the last one is the outermost: it sees what the other refuses

    _answer_errors(app)

    async def ask(request: SegmentRequest | DescribeRequest) -> tuple[Asked, Answered]:
        try:
            async with asyncio.timeout(limits.seconds):
                batcher.check()  # before a large photograph is decoded, and that in a thread, not to hold up the others
                asked = await asyncio.to_thread(read, request, limits)
                return asked, await asyncio.wrap_future(batcher.ask(asked))
        except Full as error:
            raise Refused(503, f"{error}; try again later") from None
        except TimeoutError:
            raise Refused(504, f"no answer within {limits.seconds:g} s; ask for less, or try again later") from None
        except ValueError as error:  # of the model: an empty region, a place outside the image
            raise Refused(422, str(error)) from None

    @app.post("/v1/segment", summary="masks of what expressions name, and of what is pointed at")
    async def segment(request: SegmentRequest) -> SegmentResponse:
        asked, answers = await ask(request)
        return await asyncio.to_thread(segmented, request, asked, answers, batcher)

    @app.post("/v1/describe", summary="captions of regions")
    async def describe(request: DescribeRequest) -> DescribeResponse:
        _, answers = await ask(request)
        return DescribeResponse(captions=answers.captions)

    @app.get("/health", summary="200 while the model answers")
    async def health() -> JSONResponse:
        state = {"status": "ok" if batcher.alive else "the worker has ended", "model": name, "waiting": batcher.waiting}
        return JSONResponse(state | {"version": __version__}, 200 if batcher.alive else 503)

    @app.get("/metrics", summary="counters, as Prometheus reads them", response_class=PlainTextResponse)
    async def metrics() -> str:
        lines = [f'ans_http_requests_total{{route="{route}",status="{code}"}} {n}' for (route, code), n in answered.items()]
        lines += [f'ans_http_seconds_total{{route="{route}"}} {value:.6f}' for route, value in seconds.items()]
        lines += [f"ans_{key}_total {value}" for key, value in vars(batcher.counts).items()]
        return "\n".join([*lines, f"ans_waiting {batcher.waiting}", ""])

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi(), limits))

    return app


def _answer_errors(app: FastAPI) -> None:
    """Answer what goes wrong by JSON with one line, `error`, and the status that fits it."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        said = [f"{'.'.join(map(str, of['loc'][1:])) or 'body'}: {of['msg']}" for of in error.errors()[:5]]
        return JSONResponse({"error": "; ".join(said)}, 422)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{type(error).__name__} in the server; its log says more"}, 500)


def read(request: SegmentRequest | DescribeRequest, limits: Limits) -> Asked:
    """Return what a request asks. Raises `Refused`, before anything is decoded where too much is asked."""
    regions: list[Rle | str] = request.masks if isinstance(request, DescribeRequest) else []
    expressions = request.expressions if isinstance(request, SegmentRequest) else []
    count = len(request.points) + len(request.boxes) + len(expressions) + len(regions)
    if not count:
        raise Refused(422, "nothing is asked: name expressions, masks, points or boxes")
    if count > limits.questions:
        raise Refused(413, f"{count} questions in one request; at most {limits.questions} are answered")
    try:
        data = _from_base64(request.image, "image")
        image = _image(data, limits)
        places = request.places
        for place in places:
            place.check(image.height, image.width)
        if isinstance(request, SegmentRequest):
            return Asked(image, key_of(data), expressions, places)
        shown = [_region(mask, image.size, number) for number, mask in enumerate(regions)]
        return Asked(image, key_of(data), regions=[*shown, *places])
    except ValueError as error:
        raise Refused(422, str(error)) from None


def segmented(request: SegmentRequest, asked: Asked, answers: Answered, batcher: Batcher) -> SegmentResponse:
    """Return the response, with its masks written as they were asked for."""
    found = [(text, one.answer, one.mask) for text, one in zip(asked.expressions, answers.segmented, strict=True)]
    found += [(str(place), None, mask) for place, mask in zip(asked.places, answers.pointed, strict=True)]
    results = [
        FoundMask(what=what, answer=answer, found=bool(mask.any()), area=int(mask.sum()), mask=_mask(mask, request.format))
        for what, answer, mask in found
    ]
    unknown = batcher.model.unknown_words(" ".join(asked.expressions))
    return SegmentResponse(width=asked.image.width, height=asked.image.height, results=results, unknown_words=unknown)


class Counted:
    """Counts the answers, by route and status, and their seconds; also those that are refused before a route is known, and failures."""

    def __init__(self, app: Any, answered: Counter[tuple[str, int]], seconds: Counter[str]) -> None:
        self.app, self.answered, self.seconds = app, answered, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.monotonic(), None  # None: the caller has gone

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            status = 500  # which is what the caller gets, further out
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the address: callers could invent any number of these
            if status is not None:
                self.answered[route, status] += 1
                self.seconds[route] += time.monotonic() - start  # type: ignore[assignment]


class BodyLimit:
    """Refuses a body of more bytes than the limit, also one that states no length, before it is kept; one that does not come in time; and
    one more than may be there at once, so that no number of callers fills the memory."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.app, self.limits, self.most, self.open = app, limits, limits.bytes, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if self.open >= self.limits.requests:
            return await self._refuse(503, f"{self.open} requests are here already; try again later")(scope, receive, send)
        self.open += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await self._body(scope, receive)
        except TimeoutError:
            text = f"the request did not come within {self.limits.seconds:g} s"
            return await self._refuse(408, text)(scope, receive, send)
        except ConnectionError:
            return None
        else:
            if body is None:
                text = f"the request has more than {self.most / 1e6:g} MB"
                return await self._refuse(413, text)(scope, receive, send)
            whole = [{"type": "http.request", "body": body, "more_body": False}]

            async def again() -> Any:
                return whole.pop() if whole else await receive()

            return await self.app(scope, again, send)
        finally:
            self.open -= 1

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """Return it, or None of one that is too long. Raises `ConnectionError` where the caller has gone."""
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        parts, got, more = [], 0, True
        while more and got <= 10 * self.most and stated.isdigit() and int(stated) <= 10 * self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            part, more = message.get("body", b""), message.get("more_body", False)
            got += len(part)
            if got <= self.most:  # the rest of one that is somewhat too long is read, so that its sender hears why, but not kept
                parts.append(part)
        return None if more or got > self.most else b"".join(parts)

    def _refuse(self, status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status, {"Connection": "close"} | ({"Retry-After": "1"} if status == 503 else {}))


def page(schema: dict[str, Any], limits: Limits) -> str:
    """Return the OpenAPI description as a page of its own, which works without the internet."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, of in methods.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(of.get('summary', ''))}</p>")
            body = of.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            answer = of["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
            for title, reference in (("request", body), ("response", answer)):
                if "$ref" in reference:
                    parts.append(_fields(title, schema["components"]["schemas"][reference["$ref"].rpartition("/")[2]]))
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>ANS</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:1rem auto;padding:0 1rem}td,th{text-align:left;"
        "vertical-align:top;padding:.2rem .8rem .2rem 0}pre{overflow:auto}</style>"
        f'<h1>ANS {__version__}</h1><p>JSON in, JSON out; errors are <code>{{"error": ...}}</code>. At most {limits.bytes / 1e6:g} MB, '
        f"{limits.pixels / 1e6:g} megapixels and {limits.questions} questions a request. The whole description: "
        f"<a href=openapi.json>openapi.json</a>.</p>{''.join(parts)}"
        "<h2>Example</h2><pre>curl -s localhost:8000/v1/segment -H 'Content-Type: application/json' \\\n"
        '  -d \'{"image": "\'$(base64 -w0 photo.png)\'", "expressions": ["the left cup"]}\'</pre></html>'
    )


def _fields(title: str, schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if title == 'request' and name in needed else ''}</td>"
        f"<td>{escape(of.get('type') or ' or '.join(one.get('type', 'object') for one in of.get('anyOf', [])))}</td>"
        f"<td>{escape(of.get('description', ''))}</td></tr>"
        for name, of in schema["properties"].items()
    )
    return f"<h3>{title}</h3><table>{rows}</table>"


def _from_base64(text: str, name: str) -> bytes:
    """Decode base64, also of a data address, as browsers make it."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError:
        raise ValueError(f"{name}: is not base64") from None


def _image(data: bytes, limits: Limits) -> Image.Image:
    try:
        with identify(data) as image:
            width, height = image.size
        if width * height > limits.pixels:
            raise Refused(413, f"image: has {width} x {height} pixels; at most {limits.pixels / 1e6:g} million are read")
        return decoded(data)
    except BROKEN_IMAGE as error:
        raise ValueError(f"image: not a readable image: {error}") from None


def _region(mask: Rle | str, size: tuple[int, int], number: int) -> np.ndarray:
    """Return (height, width) bool."""
    name, (width, height) = f"masks.{number}", size
    try:
        if isinstance(mask, Rle):
            counts = mask.counts
            shape, pixels = tuple(mask.size), lambda: masks.decode(counts, height, width)
        else:
            picture = identify(_from_base64(mask, name))
            shape, pixels = (picture.height, picture.width), lambda: np.asarray(picture.convert("L"))
        if shape != (height, width):  # before its pixels, of which a small file may have very many
            raise ValueError(f"is {shape[1]} x {shape[0]} pixels, the image {width} x {height}; they must be equal")
        found = pixels() > 0
    except BROKEN_IMAGE as error:
        raise ValueError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    if not found.any():
        raise ValueError(f"{name}: has no pixel, so there is no region to describe")
    return found


def _mask(mask: np.ndarray, kind: str) -> Rle | str:
    if kind == "rle":
        return Rle(size=list(mask.shape), counts=masks.from_array(mask))
    buffer = BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
