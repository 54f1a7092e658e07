"""`python -m ans config`: all settings in force, with what they mean and where they come from."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from ruamel.yaml import YAML

from ans.cli import main
from ans.cli.document import document, kind_of
from ans.config import Config, ConfigError, load
from ans.config.fields import Count, List, NonEmpty, Precision, Section, Share
from ans.config.presets import BY_PRESET
from ans.config.sections import all_fields
from ans.errors import run

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="module")
def config() -> Config:
    return load(PARAMS)


def test_another_preset_is_shown_without_choosing_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "--params", str(PARAMS), "--preset", "sa2va-4b", "train.lora.rank"])
    assert "128" in capsys.readouterr().out
    main(["config", "--params", str(PARAMS), "train.lora.rank"])
    assert "128" not in capsys.readouterr().out


def test_it_shows_every_setting_in_force(config: Config) -> None:
    """Read as YAML, it is the configuration; put in the place of params.yaml's sections, it is the same one."""
    shown = YAML(typ="safe").load(document(config))
    for path in all_fields():
        node: Any = shown
        for part in path.split("."):
            if node == "none":
                break
            node = node[part]
    again = Config(shown, {"tiny": {name: {} for name in BY_PRESET}})
    assert (again.train, again.weights, again.evaluate, again.convert) == (
        config.train,
        config.weights,
        config.evaluate,
        config.convert,
    )
    assert again.tasks == config.tasks and again.variants == config.variants and again.sources == config.sources


def test_a_setting_has_its_documentation_and_origin(config: Config) -> None:
    assert (
        document(config, "train.lr").split()
        == "lr: 0.0006 # peak learning rate of all groups but the mask decoder [number > 0, <= 1; preset tiny]".split()
    )
    assert document(config, "train.beta").endswith(
        "# weight of the auxiliary gradient (loop 2's); 0: it has no effect [number >= 0; default]\n"
    )
    assert document(config, "train.schedule").endswith("[constant | cosine | linear; default]\n")
    assert document(config.changed({"train.lr": 1e-5}), "train.lr").startswith("lr: 1e-05 ")
    assert "[text; params.yaml]" in document(config, "preset")


def test_a_section_alone(config: Config) -> None:
    lines = document(config, "train.lora").splitlines()
    assert lines[0].startswith("lora:  ") and [line.split(":")[0] for line in lines[1:]] == [
        "  enabled", "  rank", "  alpha", "  dropout", "  targets",
    ]  # fmt: skip
    assert document(config, "sources.refcoco").splitlines()[1].startswith("  reader: refcoco ")
    assert document(config, "variants.proj").split() == "proj: [proj] # [params.yaml]".split()
    assert "\n  refcoco: {reader: refcoco, folder: ref_seg/refcoco} # [params.yaml]\n" in document(config, "sources")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.tau", "train.loop1.tau"),
        ("lr", "train.lr"),
        ("train.loop1.lr", "train.lr"),
        ("train.lora.ranks", "train.lora.rank"),
        ("train.lr.x", "train.lr"),
        ("trian", "train"),
    ],
)
def test_a_wrong_key_is_answered_with_the_right_one(config: Config, key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: unknown key; did you mean {meant}[?]$"):
        document(config, key)


class Sample(Section):
    share: Share = Field(0.5, description="a share")
    names: NonEmpty[Precision] | None = Field(None, description="names")
    counts: List[Count] = Field((), description="counts")
    many: dict[str, str] = Field({}, description="many")


def test_types_and_ranges_in_words() -> None:
    kinds = {name: kind_of(of) for name, of in Sample.model_fields.items()}
    assert kinds == {
        "share": "number >= 0, <= 1",
        "names": "list, not empty, of float32 | bf16 or none",
        "counts": "list of integer >= 1",
        "many": "by name",
    }


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Config) -> None:
    main(["config", "evaluate", "--params", str(PARAMS)])
    assert capsys.readouterr().out == document(config, "evaluate")
    broken = tmp_path / "params.yaml"
    broken.write_text(PARAMS.read_text(encoding="utf-8").replace("  clip:    ", "  clip: -1.0 "), encoding="utf-8")
    for arguments, message in (
        (["--params", str(broken)], "train.clip: must be above 0, found -1.0"),
        (["train.tau", "--params", str(PARAMS)], "train.tau: unknown key; did you mean train.loop1.tau?"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(main, ["config", *arguments])
        assert stopped.value.code == 1 and capsys.readouterr().err.startswith(f"error: {message}\n")
