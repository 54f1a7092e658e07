"""report.html as a browser finds it: whole without the network, no script error, sorted and filtered by its controls.

The browser is Debian's headless Chromium (`apt-get install chromium`); without one those tests are skipped and say so.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.test_report import HOSTILE, VARIANTS, make_tree, run

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not opened in a browser")
VOID = {"meta", "link", "img", "br", "path", "circle"}
MEGABYTES = 2


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = make_tree(tmp_path_factory.mktemp("page"))
    for variant in VARIANTS:  # as if some of its expressions were of nothing
        path = tree / "reports" / "eval" / variant / "refcocog_test.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"giou": 0.5, "n_acc": 0.125, "t_acc": 0.375}))
    manifest = tree / "models" / "checkpoint" / "manifest.json"
    best = {"number": 2, "step": 30, "loss": 0.5, "val_ciou": 0.6}  # as of a training with a validation
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"best": best}))
    return run(tree) / "report.html"


class Reader(HTMLParser):
    """Checks that tags are closed in their order, and notes attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_asks_for_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and len(text) < MEGABYTES * 1e6
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "step 30, the best of the validation (evaluation 2)" in reader.words
    assert text.count("<td>12.5</td><td>37.5</td>") == len(VARIANTS) and "Long and short" in reader.words
    for tag, attributes in reader.tags:
        for name in ("src", "href"):
            target = attributes.get(name) or "#main"
            assert target.startswith("data:") or target[1:] in ids, f"{tag} {name}={target}"
        if tag == "img" or attributes.get("role") == "img":
            assert attributes.get("alt") or attributes.get("aria-label"), "a picture without words"
        if tag == "select":
            assert attributes["id"]
    assert not re.findall(r"url\((?!data:)", text) and "http://" not in text and "https://" not in text
    assert [tag for tag, _ in reader.tags].count("script") == 1, "a text of the data became a script"
    assert HOSTILE in reader.words
    for words in ("a red cat", "base <says> so", "5ha of full", "no <mask>", "1,234", *VARIANTS):
        assert words in reader.words, words


def look(page: Path, folder: Path, *flags: str) -> tuple[str, str, list[str]]:
    """(DOM after scripts ran, what Chromium wrote to standard error, addresses that the page requested)."""
    log = folder / "net.json"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    quiet += ["--host-resolver-rules=MAP * ~NOTFOUND"]  # the browser asks for things of its own; it shall reach nothing
    quiet += ["--disable-sync", "--no-first-run", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *quiet, f"--log-net-log={log}", "--virtual-time-budget=3000", *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    of_page = [
        event["params"]
        for event in json.loads(log.read_text(encoding="utf-8"))["events"]
        if "initiator" in event.get("params", {})
    ]
    return done.stdout, done.stderr, [of["url"] for of in of_page if of["initiator"] != "not an origin"]


def edited(page: Path, tmp_path: Path, script: str) -> Path:
    """The page with one more script at its end."""
    other = tmp_path / "edited.html"
    other.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return other


@needs_browser
def test_a_browser_finds_no_fault(page: Path, tmp_path: Path) -> None:
    dom, said, requested = look(page, tmp_path)
    assert "CONSOLE" not in said, said
    assert requested == []
    assert re.search(r'<p id="told"[^>]*>\d+ of \d+ shown, by change, most improved first</p>', dom), "the script has run"
    changes = [float(value) for value in re.findall(r'data-change="([^"]+)"', dom)]
    assert changes == sorted(changes, reverse=True) and changes[0] > changes[-1]


@needs_browser
def test_the_check_itself_sees_requests_and_errors(page: Path, tmp_path: Path) -> None:
    """Without the page's policy a request shows in the log; with it, it is refused and that is an error."""
    script = 'new Image().src = "http://example.invalid/x.png"; throw new Error("on purpose")'
    broken = edited(page, tmp_path, script)
    _, said, requested = look(broken, tmp_path)
    assert "on purpose" in said and "Content Security Policy" in said and not any("x.png" in address for address in requested)
    open_page = tmp_path / "open.html"
    open_page.write_text(re.sub("<meta http-equiv[^>]*>", "", broken.read_text(encoding="utf-8")), encoding="utf-8")
    _, _, requested = look(open_page, tmp_path)
    assert any("x.png" in address for address in requested)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Path, tmp_path: Path, width: int) -> None:
    """At a phone's width too, which a window of Chromium cannot have, but a frame in it."""
    edited(
        page,
        tmp_path,
        "const { scrollWidth, clientWidth } = document.documentElement;"
        "parent.postMessage([innerWidth, scrollWidth - clientWidth], '*')",
    )
    script = "onmessage = (event) => { document.title = JSON.stringify(event.data) }"
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<title></title><script>{script}</script><iframe src="edited.html" width="{width}" height="900" frameborder="0">'
    )
    dom, _, _ = look(outer, tmp_path, "--window-size=1400,1000")
    assert json.loads(re.search("<title>(.*?)</title>", dom)[1]) == [width, 0]


@needs_browser
def test_controls_sort_and_filter(page: Path, tmp_path: Path) -> None:
    """Worst first; then only those that failed for want of a [SEG], which are none of the compared variant's."""
    script = """
    const sort = document.getElementById("sort"), filter = document.getElementById("filter");
    sort.value = "iou up"; filter.value = "most worsened"; sort.dispatchEvent(new Event("change"));
    """
    dom, said, _ = look(edited(page, tmp_path, script), tmp_path)
    assert "CONSOLE" not in said, said
    cards = re.findall(r"<li class=\"card\" data-place[^>]*?data-iou=\"([^\"]+)\"[^>]*?data-kind=\"([^\"]+)\"[^>]*>", dom)
    tags = re.findall(r"<li class=\"card\" data-place[^>]*>", dom)
    assert [float(value) for value, _ in cards] == sorted(float(value) for value, _ in cards)
    assert [not tag.endswith('hidden="">') for tag in tags] == [kind == "most worsened" for _, kind in cards]
    assert 0 < sum(kind == "most worsened" for _, kind in cards) < len(cards)


@needs_browser
def test_tables_sort_and_curves_say_their_values(page: Path, tmp_path: Path) -> None:
    script = """
    const said = [];
    const table = document.querySelector('table[aria-label="cIoU, %"]');
    const column = () => [...table.tBodies[0].rows].map((row) => row.cells[2].firstChild.textContent);
    const button = table.tHead.rows[0].cells[2].querySelector("button");
    button.click(); said.push(column(), table.tHead.rows[0].cells[2].getAttribute("aria-sort"));
    button.click(); said.push(column());
    const svg = document.querySelector("#curves svg"), box = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right, clientY: box.top + 9 }));
    said.push(document.querySelector("#curves .read").textContent);
    document.title = JSON.stringify(said);
    """
    dom, said, _ = look(edited(page, tmp_path, script), tmp_path)
    assert "CONSOLE" not in said, said
    up, sort, down, read = json.loads(unescape(re.search("<title>(.*?)</title>", dom)[1]))
    assert sort == "ascending" and up[:2] == sorted(up[:2], key=float) and down[:2] == up[1::-1] and up[2] == down[2], (
        "the mean stays last"
    )
    assert up[0] != up[1] and re.fullmatch(r"step 60: loss 0\.\d+", read)
