"""Each layout of videos with expressions: what was drawn is what is read, and what is damaged is named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ans.cli import main
from ans.data.clips import Clip, ClipFrames, read, readers
from ans.data.records import Skipped
from ans.toy.world import checksum, write_world
from ans.toy.world_videos import OBJECTS, PLACES, STILL, VALUES, WRITERS, Film, film, write_crossing
from tests.data.worlds import SMALLEST

COUNTS = {
    "mevis": (20, 1, 3, 6),
    "revos": (5, 7),
    "ref_youtube_vos": (6, 9),
    "ref_davis": (3, 4),
    "ref_sav": (9, 14),
    "sav": (9, 14),
    "own_videos": (5, 6),
}
STEPS = {"ref_sav": 4, "sav": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Film]]]:
    root = tmp_path_factory.mktemp("videos")
    return root, {name: write(root, 3, COUNTS[name]) for name, write in WRITERS.items()}


def clips(root: Path, name: str) -> tuple[list[Clip], list[Skipped]]:
    found = list(read(name, root, *PLACES[name]))
    return [one for one in found if isinstance(one, Clip)], [one for one in found if isinstance(one, Skipped)]


def test_every_reader_has_a_world() -> None:
    assert set(readers()) == set(WRITERS) == set(PLACES) == set(COUNTS)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_what_was_drawn_is_read(world, name: str) -> None:
    root, films = (
        world[0],
        [made for made, count in zip(world[1][name], COUNTS[name], strict=True) if (name, count) != ("mevis", 1)],
    )
    found, _ = clips(root, name)
    assert len(found) == len(films)
    by_frames = {len(clip.frames): clip for clip in found}
    for made in films:
        masks, pictures = made.masks[:: STEPS.get(name, 1)], made.frames[:: STEPS.get(name, 1)]
        clip = by_frames[len(masks)]
        assert (clip.height, clip.width) == masks.shape[2:]
        shown = ClipFrames(root, clip)
        for t in range(len(masks)):
            assert np.abs(np.asarray(shown[t]).astype(int) - pictures[t]).mean() < 8
        texts = {text: ids for text, ids in made.said}
        seen = 0
        for one in clip.expressions:
            meant = next((ids for text, ids in texts.items() if one.text.startswith(text)), ())
            seen += bool(meant)
            for t in range(len(masks)):
                expected = masks[t, list(meant)].any(0) if meant else np.zeros(masks.shape[2:], bool)
                assert np.array_equal(clip.target(one, t), expected), (clip.name, one, t)
        if name == "sav":  # which has no expressions
            assert all(np.array_equal(clip.mask(str(i), t), masks[t, i]) for t in range(len(masks)) for i in range(OBJECTS))
            continue
        assert seen >= OBJECTS
        if name in ("mevis", "revos", "own_videos"):
            assert np.array_equal(clip.all_objects(len(masks) - 1), masks[-1].any(0))


def test_ids_and_names_are_the_published_ones(world) -> None:
    root = world[0]
    found = {name: clips(root, name)[0] for name in WRITERS}
    long = next(clip for clip in found["mevis"] if len(clip.frames) == 20)
    assert [one.id for one in long.expressions][:4] == ["0", "1", "10", "11"] and len(long.expressions) == 16
    assert [one.objects for one in long.expressions if one.text == "what is not there"] == [()]
    assert [clip.name for clip in found["mevis"]] == ["v0", "v2", "v3"]
    assert found["ref_youtube_vos"][0].names[:3] == ("00000", "00005", "00010")
    assert set(found["ref_youtube_vos"][0].masks) == {str(value) for value in VALUES}
    revos = found["revos"][0]
    kinds = [one.kind for one in revos.expressions]
    assert (revos.name, kinds) == (
        "source0/v0",
        ["referring"] * 2 + ["reasoning"] + ["referring"] * 2 + ["absent"],
    )
    davis = found["ref_davis"][0]
    assert davis.name == "motorbike" and len(davis.expressions) == 16
    by_id = {one.id: one for one in davis.expressions}
    assert [by_id[str(k)].objects for k in (0, 3, 4, 15)] == [("1",), ("1",), ("2",), ("4",)]
    assert [by_id[str(k)].text.split()[-1] for k in range(4)] == ["annot1", "annot1_full_video", "annot2", "annot2_full_video"]
    assert all("caf\u00e9" in one.text for one in davis.expressions)
    assert found["ref_sav"][0].names == ("00000", "00004", "00008")


def test_masks_that_are_not_published(world) -> None:
    root = world[0]
    for name, folder, videos in (("mevis", "mevis", ["v0", "v2", "v3"]), ("ref_youtube_vos", "ytvos", ["v0"])):
        found = [one for one in read(name, root, folder, "valid") if isinstance(one, Clip)]
        assert [clip.name for clip in found] == videos  # the videos of test are not among them
        with pytest.raises(ValueError, match="v0: the masks of expression 0 are not published"):
            found[0].target(found[0].expressions[0], 0)


def test_what_cannot_be_used_is_said(world) -> None:
    _, skipped = clips(world[0], "mevis")
    assert {(one.key, one.reason) for one in skipped} == {
        ("valid_u/gone", "missing frame: 00000"),
        ("valid_u/v1", "video of fewer than two frames"),
    }


def damaged(tmp_path: Path, name: str) -> Path:
    WRITERS[name](tmp_path, 3, (5, 6))
    return tmp_path / PLACES[name][0]


def reasons(root: Path, name: str) -> list[str]:
    return [one.reason for one in clips(root, name)[1]]


def test_damage_is_named(tmp_path: Path) -> None:
    base = damaged(tmp_path, "mevis") / "valid_u"
    Image.new("RGB", (20, 20)).save(base / "JPEGImages" / "v0" / "00003.jpg")
    masks = json.loads((base / "mask_dict.json").read_text())
    masks[str(OBJECTS)].pop()
    (base / "mask_dict.json").write_text(json.dumps(masks))
    assert sorted(reasons(tmp_path, "mevis")) == [
        "frames of different sizes",
        "missing frame: 00000",
        "not one mask per frame",
    ]
    content = json.loads((base / "meta_expressions.json").read_text())
    content["videos"]["../v1"] = content["videos"].pop("v1")
    (base / "meta_expressions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"meta_expressions.json: '../v1' is not a valid name of a video or frame"):
        clips(tmp_path, "mevis")


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"videos": []}', '{"videos": {"a": {"frames": ["0"], "expressions": {"0": 3}}}}']
)
def test_a_listing_of_another_form_is_named(tmp_path: Path, content: str) -> None:
    base = damaged(tmp_path, "revos")
    (base / "meta_expressions_valid_.json").write_text(content)
    with pytest.raises(ValueError, match="meta_expressions_valid_.json: "):
        clips(tmp_path, "revos")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("mask_dict", "0"), {"a": 1}, "not one mask per frame"), (("mask_dict", "0", 0), [3], "one list of numbers"),
        (("mask_dict_foreground", "source0/v0"), [], "expected a record with 'masks_rle'"),
        (("meta_expressions_valid_", "videos", "source0/v0", "expressions", "0", "type_id"), [], r"type_id is \[\], expected int"),
        (("meta_expressions_valid_", "videos", "source0/v0", "expressions", "0", "anno_id"), 1.5, "ids are 1.5"),
        (("meta_expressions_valid_", "videos", "source0/v0", "expressions", "0", "exp"), " ", "empty text"),
    ],
)  # fmt: skip
def test_values_of_another_form_are_named(tmp_path: Path, path: tuple[str | int, ...], value: object, reason: str) -> None:
    file = damaged(tmp_path, "revos") / f"{path[0]}.json"
    content = place = json.loads(file.read_text())
    for key in path[1:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(content))
    (found,) = reasons(tmp_path, "revos")
    assert re.search(reason, found), found


def test_damage_of_palettes_and_lines_is_named(tmp_path: Path) -> None:
    base = damaged(tmp_path, "ref_youtube_vos")
    place = base / "train" / "Annotations"
    Image.new("RGB", (96, 64)).save(place / "v0" / "00005.png")
    Image.new("P", (96, 60)).save(place / "v1" / "00005.png")
    assert reasons(tmp_path, "ref_youtube_vos") == ["a mask that is not a palette image", "a mask of another size than its frame"]
    davis = damaged(tmp_path, "ref_davis")
    path = davis / "davis_text_annotations" / "Davis17_annot1.txt"
    path.write_text(path.read_text() + "film1 1 no quotes\n")
    with pytest.raises(ValueError, match=r'Davis17_annot1.txt:9: expected `video object "expression"`'):
        clips(tmp_path, "ref_davis")


def test_damage_of_own_videos_is_named(tmp_path: Path) -> None:
    base = damaged(tmp_path, "own_videos")
    Image.new("L", (96, 64), 255).save(base / "masks" / "clip0" / "object0" / "00099.png")
    lines = [
        '{"clip": "clip1", "object": "object9", "text": "a", "split": "val"}', '{"clip": "../x", "object": "a", "text": "a"}',
        '{"clip": "clip1", "object": [], "text": 3}', '{"clip": "clip1", "objekt": "a", "text": "a"}', "{",
        '{"clip": "gone", "object": "a", "text": "a", "split": "val"}',
    ]  # fmt: skip
    with open(base / "expressions.jsonl", "a") as file:
        file.write("\n".join(lines) + "\n")
    _, skipped = clips(tmp_path, "own_videos")
    said = {one.key: one.reason for one in skipped}
    assert said.keys() == {f"expressions.jsonl:{number}" for number in (12, 13, 14, 15)} | {"clip0", "clip1", "gone"}
    assert said["clip0"] == "masks/clip0/object0/00099.png: the clip has no such frame"
    assert said["clip1"] == "masks/clip1/object9: no PNG" and said["gone"].startswith("neither a folder of frames nor an mp4")
    assert said["expressions.jsonl:14"].startswith("unknown key 'objekt'")


def test_own_videos_are_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = damaged(tmp_path, "own_videos")
    main(["validate", str(base)])
    assert capsys.readouterr().out.splitlines() == ["val: 2 clips, 11 frames, 10 expressions", "0 lines and clips cannot be used"]
    with open(base / "expressions.jsonl", "a") as file:
        file.write('{"clip": "gone", "object": "a", "text": "a"}\n{\n')
    with pytest.raises(SystemExit):
        main(["validate", str(base)])
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["train: 0 clips, 0 frames, 0 expressions", "val: 2 clips, 11 frames, 10 expressions"]
    assert said[2].startswith(f"{base}/expressions.jsonl:12: ") and said[3].startswith(f"{base}/gone: neither a folder")
    assert said[4] == "2 lines and clips cannot be used"


def test_sav_of_other_lengths_is_refused(tmp_path: Path) -> None:
    base = damaged(tmp_path, "ref_sav")
    path = base / "sam_v_full" / "sav_train" / "sav_000" / "sav_000000_manual.json"
    content = json.loads(path.read_text())
    content["masklet"].pop()
    path.write_text(json.dumps(content))
    assert any(
        "areas" in reason or "annotated frames" in reason or "size_abs" in reason for reason in reasons(tmp_path, "ref_sav")
    )
    listed = json.loads((base / "Ref-SAV.json").read_text())
    listed["sav_000001"]["objects"]["7"] = {"formated": "a"}
    (base / "Ref-SAV.json").write_text(json.dumps(listed))
    assert "object that has no masks" in reasons(tmp_path, "ref_sav")


def test_only_motion_tells_the_two_alike(world) -> None:
    """Until they move they differ in nothing but their place, and afterwards they have changed sides. Either may be the upper one."""
    upper = set()
    for number in range(8):
        made = film(3, number, 20)
        centre = np.array([[np.argwhere(made.masks[t, i]).mean(0) for i in (0, 1)] for t in (*range(STILL), -1)])
        across = centre[..., 1]
        assert np.allclose(across[:STILL], across[0], atol=0.5)
        assert across[0, 0] < across[0, 1] and across[-1, 0] > across[-1, 1]
        assert made.masks[7, 2].sum() == made.masks[5, 3].sum() == 0 < made.masks[0, 2].sum()
        hidden = made.masks[:, :2].sum((2, 3)).min(0) < 0.9 * made.masks[0, :2].sum((1, 2))
        assert hidden.any() == (number % 2 == 1)
        upper.add((number % 2, bool(centre[0, 0, 0] < centre[0, 1, 0])))
    assert len(upper) == 4


def test_an_unknown_reader_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reader: must be one of mevis, own_videos, ref_davis"):
        list(read("youtube", tmp_path, "a", "b"))
    with pytest.raises(FileNotFoundError, match="a: not found"):
        list(read("mevis", tmp_path, "a", "b"))


@pytest.mark.second
def test_a_world_has_videos_where_it_is_asked_for(tmp_path: Path) -> None:
    write_world(tmp_path / "none", SMALLEST)
    write_world(tmp_path / "two", SMALLEST.model_copy(update={"videos": 2}))
    assert not (tmp_path / "none" / "videos").exists()
    (tmp_path / "two" / "videos").rename(tmp_path / "videos")
    assert checksum(tmp_path / "none") == checksum(tmp_path / "two"), "the rest is as it was"
    for name, (folder, split) in PLACES.items():
        assert len([one for one in read(name, tmp_path, f"videos/{folder}", split) if isinstance(one, Clip)]) == 2


def test_films_of_objects_that_cross(tmp_path: Path) -> None:
    """An expression names an object by its side in the first frames; at the end it is the other's side. No film is in two splits."""
    write_crossing(tmp_path, 5, 2)
    splits = {
        split: [one for one in read("own_videos", tmp_path, "crossing", split) if isinstance(one, Clip)]
        for split in ("train", "test", "val")
    }
    assert [len(of) for of in splits.values()] == [2, 2, 1]
    pictures = [(tmp_path / clip.frames[0]).read_bytes() for of in splits.values() for clip in of]
    assert len(set(pictures)) == 5
    for clip in (clip for of in splits.values() for clip in of):
        left, right = clip.expressions
        assert left.text.endswith(" on the left") and right.text == left.text.replace("left", "right")

        def places(frame: int, clip: Clip = clip) -> list[float]:
            return [float(np.nonzero(clip.target(one, frame))[1].mean()) / clip.width for one in clip.expressions]

        for frame in range(STILL - 1):
            assert places(frame)[0] < 0.4 and places(frame)[1] > 0.6
        assert places(len(clip.frames) - 1)[0] > 0.6 and places(len(clip.frames) - 1)[1] < 0.4
