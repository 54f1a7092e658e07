"""The configuration as a text: every setting in force with its documentation, its type and range, and where its value comes from."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML, StringIO

from ans.config.fields import ConfigError, Section
from ans.config.load import Config
from ans.config.sections import SECTIONS, suggestion, task_names

COLUMN = 36
"""Where the comments begin."""

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", dict: "by name"}


@dataclass(frozen=True)
class Node:
    """A setting, or a section with what is in it. `notes`: its type and range, and where its value comes from."""

    path: tuple[str, ...]
    value: Any
    doc: str
    notes: tuple[str, ...] = ()
    inside: list["Node"] = field(default_factory=list)


def document(config: Config, key: str | None = None) -> str:
    """Return the configuration, or the section or setting of that dotted path, as YAML with comments.

    Raises `ConfigError` for an unknown path, with the one that was probably meant.
    """
    if key is None:
        return "".join(_lines(node, 0) for node in _sections(config, ["preset", *SECTIONS]))
    name, *parts = key.split(".")
    nodes = list(_sections(config, [name] if name in ("preset", *SECTIONS) else []))
    for length in range(len(parts) + 1):
        path = (name, *parts[:length])
        nodes = [node for node in nodes if node.path == path]
        if not nodes:
            raise ConfigError(f"{key}: unknown key{suggestion(key)}")
        if length < len(parts):
            nodes = nodes[0].inside
    return _lines(nodes[0], 0)


def doc_of(kind: Any) -> str:
    """Return the documentation of a section: the first paragraph of its class, or the description of a collection by name."""
    if isinstance(kind, type):
        return " ".join((kind.__doc__ or "").split("\n\n")[0].split()) if "__doc__" in vars(kind) else ""
    return next(of.description or "" for of in get_args(kind) if isinstance(of, FieldInfo))


def kind_of(setting: FieldInfo) -> str:
    """Return the type and range of a setting, in words."""
    return _kind(setting.annotation, setting.metadata)


def _sections(config: Config, names: Sequence[str]) -> Iterator[Node]:
    for name in names:
        if name == "preset":
            yield Node(
                ("preset",),
                config.preset,
                "a file of ans/presets, without .yaml: what differs from the defaults, such as sa2va-4b",
                ("text", "params.yaml"),
            )
            continue
        value = getattr(config, name)
        if isinstance(value, Section):
            node = Node((name,), None, doc_of(SECTIONS[name]), inside=_inside(config, value, (name,)))
        else:
            entries = [_entry(config, (name, of), entry) for of, entry in value.items()]
            node = Node((name,), {}, doc_of(SECTIONS[name]), inside=entries)
        if name == "train":
            for task in task_names():
                settings = config.task(task)
                path = (name, task)
                node.inside.append(Node(path, None, doc_of(type(settings)), inside=_inside(config, settings, path)))
        yield node


def _inside(config: Config, section: Section, path: tuple[str, ...]) -> list[Node]:
    nodes = []
    for name, setting in type(section).model_fields.items():
        value, here, doc = getattr(section, name), (*path, name), setting.description or ""
        if isinstance(value, Section):
            nodes.append(Node(here, None, doc, inside=_inside(config, value, here)))
        elif isinstance(value, dict) and value:
            notes = (kind_of(setting), config.origin(*here))
            nodes.append(Node(here, {}, doc, notes, [_entry(config, (*here, of), entry) for of, entry in value.items()]))
        else:
            nodes.append(Node(here, value, doc, (kind_of(setting), config.origin(*here))))
    return nodes


def _entry(config: Config, path: tuple[str, ...], value: Any) -> Node:
    """Return an entry of a collection by name: a section, shown on one line, or a value."""
    if isinstance(value, Section):
        return Node(path, value.model_dump(exclude_none=True), "", (config.origin(*path),), _inside(config, value, path))
    return Node(path, value, "", (config.origin(*path),))


def _lines(node: Node, depth: int) -> str:
    """Return the lines of a node. An entry of a collection is one line below its collection, and a section by itself."""
    short = depth > 0 and isinstance(node.value, dict) and node.inside and node.value
    head = f"{'  ' * depth}{node.path[-1]}:" + (f" {_yaml(node.value)}" if short or not node.inside else "")
    comment = node.doc + (f" [{'; '.join(node.notes)}]" if node.notes else "")
    line = f"{head:<{COLUMN - 1}} # {comment.strip()}" if comment else head
    return line + "\n" + ("" if short else "".join(_lines(of, depth + 1) for of in node.inside))


def _yaml(value: Any) -> str:
    """Return a value on one line."""
    yaml, stream = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = True, 10_000, False
    yaml.dump(_plain(value), stream)
    return stream.getvalue().removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """Return it as it may stand in params.yaml."""
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, tuple):
        return [_plain(of) for of in value]
    return "none" if value is None else value


def _kind(annotation: Any, metadata: Sequence[Any]) -> str:
    """Return the words for a type: `integer >= 1`, `list of a | b`, `text or none`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], [*_flat(arguments[1:]), *metadata])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        inner = [of for of in arguments if of is not type(None)]
        return " or ".join([*(_kind(of, metadata) for of in inner), *(["none"] if len(inner) < len(arguments) else [])])
    if origin is tuple:
        least = any(isinstance(of, annotated_types.MinLen) for of in metadata)
        return ("list, not empty, of " if least else "list of ") + _kind(arguments[0], [])
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    bounds = [f"{sign} {getattr(of, name)}" for name, sign in SIGNS.items() for of in metadata if hasattr(of, name)]
    return " ".join([NAMES[origin or annotation], ", ".join(bounds)]).strip()


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Return what `Field(ge=1)` stands for, in place of itself."""
    return [inner for of in metadata for inner in (of.metadata if isinstance(of, FieldInfo) else [of])]
