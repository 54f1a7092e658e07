"""Whether captions are true: by hand, and against what the synthetic world draws."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ans.config import Config
from ans.config.schema import World
from ans.data.arrow import read_index
from ans.data.index import build
from ans.data.matching import region_mask
from ans.data.records import Region
from ans.facts import Facts, KnownObject, Verdict, read_facts
from ans.toy.scenes import COLOURS, NEW_COLOURS, make_scene, render
from ans.toy.world import write_world
from ans.workspace import Workspace
from tests.pipeline import small_values

KINDS = {"size": {"small", "large"}, "stripes": {"striped"}, "colour": {"red", "blue"}, "shape": {"circle", "square"}}
FACTS = Facts(
    {name: frozenset(words) for name, words in KINDS.items()},
    {"a.jpg": (KnownObject(0.25, 0.5, "small red circle"), KnownObject(0.75, 0.5, "large striped blue circle"))},
)
FIRST, SECOND = (known.caption for known in FACTS.objects["a.jpg"])


@pytest.mark.parametrize(
    ("truth", "caption", "verdict"),
    [
        (FIRST, "small red circle", Verdict(4, 4, False)),
        (FIRST, "The circle, small and red.", Verdict(4, 4, False)),  # order and other words do not matter
        (FIRST, "small red shape", Verdict(3, 4, False)),  # what is left out is wrong
        (FIRST, "small striped red circle", Verdict(3, 4, False)),  # what is not so is wrong
        (FIRST, "small red blue circle", Verdict(3, 4, False)),  # two colours are not one
        (FIRST, "large striped blue circle", Verdict(1, 4, True)),
        (FIRST, "", Verdict(1, 4, False)),  # nothing says that it is not striped, which is right
        (SECOND, "", Verdict(0, 4, True)),
        (SECOND, "large red circle", Verdict(2, 4, True)),  # of the first it has three: plain, red, circle
        (SECOND, "striped red", Verdict(1, 4, False)),  # as many of either
    ],
)
def test_a_caption_is_judged(truth: str, caption: str, verdict: Verdict) -> None:
    assert FACTS.judge("a.jpg", truth, caption) == verdict


def test_the_object_is_the_one_at_the_mask() -> None:
    mask = np.zeros((10, 40), np.uint8)
    mask[:, 2:12] = 1  # its centre is at 7 of 40
    assert FACTS.true_caption("a.jpg", mask) == FIRST and FACTS.true_caption("a.jpg", mask[:, ::-1]) == SECOND
    assert FACTS.true_caption("b.jpg", mask) is None and FACTS.true_caption("a.jpg", 0 * mask) is None


@given(st.lists(st.sampled_from(["small", "large", "striped", "red", "blue", "circle", "square", "the"]), max_size=6))
def test_no_caption_has_more_right_than_there_is(said: list[str]) -> None:
    verdict = FACTS.judge("a.jpg", FIRST, " ".join(said))
    assert 0 <= verdict.right <= verdict.facts == 4
    assert verdict == FACTS.judge("a.jpg", FIRST, " ".join(reversed(said)).upper())


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"facts": {}}', '{"facts": {}, "objects": {"a.jpg": [{"x": 1}]}}', '{"facts": 3, "objects": {}}']
)
def test_a_file_of_another_form_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(ValueError, match="facts.json: not of the form that docs/evaluation.md gives"):
        read_facts(tmp_path)


def test_most_data_has_none(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None


LOOPS = {
    "sa1b_images": 4,
    "sav_pairs": 8,
    "openimages_images": 6,
    "describe_images": 1,
    "reasonseg_images": 2,
    "captioned_images": 4,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its indexes lie in `index`, its data in `world`."""
    folder = tmp_path_factory.mktemp("facts")
    write_world(folder / "world", World(seed=5, train_images=6, val_images=2, test_images=1, **LOOPS, shift=1.0))
    config = Config(small_values(folder / "world", own={kind: {"folder": f"captioned/{kind}"} for kind in ("true", "wrong")}))
    for name in ("refcoco_plus", "openimages", "sav", "true", "wrong"):
        build(name, config, Workspace(folder))
    return folder


def captions(world: Path, source: str) -> list[tuple[Region, str | None]]:
    """The regions of a source, each with what the facts call it."""
    facts = read_facts(world / "world")
    assert facts is not None
    records = list(read_index(Workspace(world).indexes / f"{source}.arrow").records())
    return [
        (region, facts.true_caption(record.path, region_mask(record, region))) for record in records for region in record.regions
    ]


def test_the_worlds_facts_are_those_of_its_texts(world: Path) -> None:
    """RefCOCO+'s first expression of an object says all that is true of it; Open Images' class is its shape."""
    described = [
        (region.expressions[0].sent, caption) for region, caption in captions(world, "refcoco_plus") if region.expressions
    ]
    assert len(described) > 20 and all(text == caption for text, caption in described)
    shapes = [(region.category, caption) for region, caption in captions(world, "openimages")]
    assert len(shapes) > 10 and all(caption and caption.split()[-1] == shape for shape, caption in shapes)


def test_the_first_frame_of_a_pair_is_known(world: Path) -> None:
    wanted = []
    for index in range(8):
        scene, rng = make_scene(5, "sav", index, 1.0)
        render(scene, 1.0, rng)
        wanted.append(scene.shapes[int(rng.integers(len(scene.shapes)))].caption)
    assert [caption for _, caption in captions(world, "sav")] == wanted


def test_captions_for_studies(world: Path) -> None:
    """True ones, and on the same masks those of another object of the image."""
    true, wrong = captions(world, "true"), captions(world, "wrong")
    assert len(true) > 8 and [region.counts for region, _ in true] == [region.counts for region, _ in wrong]
    assert all(region.expressions[0].sent == caption for region, caption in true)
    assert all(region.expressions[0].sent != caption for region, caption in wrong)
    facts = read_facts(world / "world")
    assert facts is not None
    for record in read_index(Workspace(world).indexes / "wrong.arrow").records():
        known = {object.caption for object in facts.objects[record.path]}
        assert {region.expressions[0].sent for region in record.regions} == known


def test_new_colours_tell_objects_apart_that_are_alike() -> None:
    for index in range(20):
        old, new = (make_scene(5, "train", index, 1.0, new)[0] for new in (False, True))
        assert len({(shape.size, shape.shape) for shape in new.shapes}) == 1
        assert len({shape.colour for shape in new.shapes}) == len(new.shapes) > 1
        for scene, colours in ((old, COLOURS), (new, COLOURS | NEW_COLOURS)):
            for shape in scene.shapes:  # the tint is small where the colour is the known one
                drawn = np.add(COLOURS[shape.colour], shape.tint)
                assert np.abs(drawn - colours[shape.colour]).max() <= 12
    nearest = {
        name: min(COLOURS, key=lambda known: float(np.linalg.norm(np.subtract(COLOURS[known], value))))
        for name, value in NEW_COLOURS.items()
    }
    assert nearest == {"red": "purple", "green": "blue", "orange": "yellow"}  # what the base takes them for
