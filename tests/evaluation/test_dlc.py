"""DLC-Bench: how the judge is asked, how its answers are read, and the scores, with a judge on this machine."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ans.cli import main
from ans.evaluation import dlc
from ans.toy.world_loops import rle
from tests import pipeline


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]], list[Any]]]:
    """A judge: its address, what it was asked, and what it will answer ("B. No" when nothing is left)."""
    asked: list[dict[str, Any]] = []
    answers: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))) | {"path": self.path})
            answer = answers.pop(0) if answers else "A."
            body = json.dumps(
                {"choices": [{"message": {"content": answer}}]} if answer is not None else {"error": "busy"}
            ).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1", asked, answers
    running.shutdown()
    running.server_close()


CHOICES = ["It is red.", "It is not red.", "The colour is not mentioned."]


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("It is red.", 0), (" b. it is not red.\n", 1), ("C", 2), ("The answer: it is not red.", 1), ("B. maybe", 1),
        ("It is red. No: the colour is not mentioned.", 2), ("not mentioned", 2), ("b\nsince", 1), ("perhaps", None), ("", None),
        ("D. none", 3),
    ],
)  # fmt: skip
def test_how_an_answer_is_read(answer: str, place: int | None) -> None:
    assert dlc.chosen(answer, CHOICES) == place


@pytest.mark.parametrize(
    ("name", "asked"),
    [("apple", "object in the description is an apple or an object of"), ("van", "object in the description is a van or an object of"),
     ("scissors", "objects in the description are scissors or objects of"), ("bus", "is a bus or an object of")],
)  # fmt: skip
def test_the_first_question(name: str, asked: str) -> None:
    assert asked in dlc.recognition(name)["question"]


QUESTIONS = [
    {"question": "Q1", "choices": [["yes it is", 1], ["wrong", -1], ["left out", 0]], "type": "positive"},
    {"question": "Q2", "choices": [["yes it is", 1], ["wrong", -1]], "type": "positive"},
    {"question": "Q3", "choices": [["invented", -1], ["fine", 1]], "type": "negative"},
]


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        (["Yes", "A", "B", "B"], dlc.RegionScore(True, 0.0, 1.0)),
        (["No", "A", "B", "B"], dlc.RegionScore(False, -0.5, 0.0)),  # nothing scores more than 0
        (["A. Yes", "C", "no idea", "A"], dlc.RegionScore(True, 0.0, -1.0)),
    ],
)
def test_a_region_by_hand(answers: list[str], score: dlc.RegionScore) -> None:
    region = dlc.JudgedRegion("1", "a.jpg", np.ones((2, 2), bool), "cup", QUESTIONS)
    left = iter(answers)
    assert dlc.judged(region, "a cup", lambda text: next(left)) == score


def test_the_mean_over_regions_leaves_out_those_without_negative_questions() -> None:
    found = dlc.metrics([dlc.RegionScore(True, 1.0, 0.5), dlc.RegionScore(False, 0.0, None)])
    assert found == {"dlc_positive": 0.5, "dlc_negative": 0.5, "dlc": 0.5, "recognised": 0.5, "n": 2}


def test_a_letter_that_no_choice_has_is_an_error() -> None:
    region = dlc.JudgedRegion("7", "a.jpg", np.ones((2, 2), bool), "cup", QUESTIONS[:1])
    left = iter(["Yes", "D. none"])
    with pytest.raises(ValueError, match="region 7: the judge says 'D. none', of 3 choices"):
        dlc.judged(region, "a cup", lambda text: next(left))


def benchmark(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (128, 112), "red").save(folder / "images" / "a.jpg")
    mask = np.zeros((112, 128))
    mask[20:60, 30:90] = 1
    listing = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 112, "width": 128}],
        "annotations": [{"id": 12, "image_id": 1, "category_id": 1, "segmentation": rle(mask), "area": 1}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    for name, content in (("annotations", listing), ("qa", {"12": QUESTIONS}), ("class_names", {"12": "cup"})):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.second
def test_the_command(tmp_path: Path, server: tuple[str, list[dict[str, Any]], list[Any]], capsys: pytest.CaptureFixture) -> None:
    url, asked, answers = server
    answers += ["Yes", None]
    out = tmp_path / "dlc.json"
    arguments = ["dlc", str(benchmark(tmp_path / "bench")), "--url", url, "--judge", "judge-1", "-o", str(out)]
    arguments += ["--model", str(pipeline.REPOSITORY / "weights" / "tiny"), "--max-new-tokens", "8"]
    with pytest.raises(RuntimeError, match=r"127.*the judge judge-1 does not answer"):
        main(arguments)
    main(arguments)  # goes on: the first question is not asked again
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(asked) == 2 + 3 and [request["path"] for request in asked] == ["/v1/chat/completions"] * 5
    assert all(request["model"] == "judge-1" and request["temperature"] == 0 for request in asked)
    description = found["regions"]["12"]["description"]
    text = asked[2]["messages"][0]["content"]
    assert description and f"The description is:\n{description}\n" in text and "Q1\nA. yes it is\nB. wrong\nC. left out" in text
    assert found["metrics"] | {"protocol": ""} == {
        "dlc_positive": 1.0, "dlc_negative": -1.0, "dlc": 0.0, "recognised": 1.0, "n": 1, "protocol": "",
    }  # fmt: skip
    assert found["protocol"]["judge"] == "judge-1"
    assert json.loads(capsys.readouterr().out) == found["metrics"]
    main([*arguments[:5], "judge-2", *arguments[6:]])
    assert json.loads(out.read_text(encoding="utf-8"))["metrics"]["protocol"] != found["metrics"]["protocol"]
    assert len(asked) == 5 + 4, "another judge is asked everything anew"


@pytest.mark.parametrize(("name", "content"), [("qa.json", "{"), ("qa.json", '{"13": []}'), ("class_names.json", "{}")])
def test_what_is_no_benchmark_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = benchmark(tmp_path / "bench")
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON|not as DLC-Bench is published"):
        dlc.read(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        dlc.read(folder)
