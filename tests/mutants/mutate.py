"""The mutants of a source file: mutmut's operators at every place of it, and two more that it lacks.

mutmut itself leaves out decorated functions (`@torch.no_grad() def greedy`), module tables and conditions without an operator.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

import libcst as cst
from libcst import matchers as m
from libcst.matchers import matches
from libcst.metadata import MetadataWrapper, PositionProvider, WhitespaceInclusivePositionProvider
from mutmut.mutation import mutators

UNSEEN = ("help", "description", "metavar", "desc", "unit", "unit_scale", "disable", "encoding", "indent", "device", "strict")
"""Keyword arguments whose change no test here can see: texts on the screen; `encoding` where UTF-8 is the default; `indent`, the
white space of JSON; `device` where there is only the CPU; `strict`, which asserts what always holds."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file. `was`, `now`: the lines that differ, without indentation; `copy`: 0, 1, ... where several places
    of the file give the same. `lines`: the statement's first and last line; `at_import`: it runs when the module is imported.
    """

    file: str
    line: int
    was: str
    now: str
    copy: int
    text: str
    lines: tuple[int, int]
    at_import: bool

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names it in another version of the file, too."""
        return self.file, self.was, self.now, self.copy


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of one file, each once, in the order of its lines."""
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    places = _Places()
    wrapper.visit(places)
    spans = wrapper.resolve(WhitespaceInclusivePositionProvider)
    begins = [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]

    def span(node: cst.CSTNode) -> tuple[int, int]:
        start, end = spans[node].start, spans[node].end
        return begins[start.line - 1] + start.column, begins[end.line - 1] + end.column

    found: dict[str, Mutant] = {}
    count: Counter[tuple[str, str]] = Counter()
    for top, old, new, lines, at_import in places.found:
        (first, last), (start, stop) = span(top), span(old)
        code = wrapper.module.code_for_node(new)
        text = source[:start] + code + source[stop:]
        if text == source or text in found or not _parses(source[first:start] + code + source[stop:last]):
            continue
        line, was, now = _difference(source, text)
        found[text] = Mutant(file, line, was, now, count[was, now], text, lines, at_import)
        count[was, now] += 1
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def _difference(old: str, new: str) -> tuple[int, str, str]:
    """(line number, the old lines that differ, the new ones), without indentation."""
    before, after = old.splitlines(), new.splitlines()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    before, after = before[same:], after[same:]
    while before and after and before[-1] == after[-1]:
        del before[-1], after[-1]
    return same + 1, "\n".join(line.strip() for line in before), "\n".join(line.strip() for line in after)


class _Places(cst.CSTVisitor):
    """Collects for each change: the module's statement around it, the node, its replacement, the first and last line of the
    node's own statement, and whether that runs at import."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, cst.CSTNode, tuple[int, int], bool]] = []
        self._stack: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _without_effect(node) or self._is_shown(node):
            return False
        for new in replacements(node):
            self._add(node, new)
        if isinstance(node, cst.If | cst.While | cst.CompIf) and not _is_inverted_anyway(node.test):
            self._add(node.test, _negated(node.test))
        self._stack.append(node)
        return not isinstance(node, cst.Raise)  # which error is raised, not its text

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self._stack and self._stack[-1] is original_node:
            self._stack.pop()

    def _is_shown(self, node: cst.CSTNode) -> bool:
        """Whether the node is a title or a label of one of the report's panels; the names of its curves are not."""
        if not isinstance(node, cst.SimpleString | cst.ConcatenatedString):
            return False
        around = self._stack[-1]
        is_key = isinstance(around, cst.DictElement) and around.key is node
        return not is_key and any(isinstance(of, cst.Call) and matches(of.func, m.Name("Panel")) for of in self._stack)

    def _add(self, old: cst.CSTNode, new: cst.CSTNode) -> None:
        around = [*self._stack, old]
        statement = next((node for node in around if isinstance(node, cst.SimpleStatementLine)), old)
        span = self.get_metadata(PositionProvider, statement)
        body = any(isinstance(node, cst.FunctionDef) and node.body in around for node in around)
        self.found.append((around[1], old, new, (span.start.line, span.end.line), not body))


def _without_effect(node: cst.CSTNode) -> bool:
    """Whether a change in this node cannot be told by running the code, or only changes what is printed."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom):
        return True
    if isinstance(node, cst.Arg) and node.keyword is not None:
        return node.keyword.value in UNSEEN
    if isinstance(node, cst.Call):
        return matches(node.func, m.Name("isinstance") | m.Name("print"))
    if isinstance(node, cst.If):
        return matches(node.test, m.Name("TYPE_CHECKING") | m.Comparison(m.Name("__name__")))
    if isinstance(node, cst.Assign):  # an alias of a type
        return matches(node.value, m.Subscript(m.Name("Literal")))
    return isinstance(node, cst.Expr) and isinstance(node.value, cst.BaseString)  # a docstring


def replacements(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """What may stand in a node's place: mutmut's changes, fewer where it makes many of one kind, and for a statement none."""
    for kind, operator in mutators.mutation_operators:
        if not isinstance(node, kind):
            continue
        if operator is mutators.operator_arg_removal:
            yield from _arguments(node)
        elif operator is mutators.operator_string:
            yield from list(operator(node))[:1]  # "XX...XX"; the same in other cases tells nothing more
        else:
            yield from operator(node)
    if isinstance(node, cst.Expr | cst.Raise | cst.Del):
        yield cst.Pass(semicolon=node.semicolon)


def _arguments(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Each argument once: left out where it has a name or is the last of several, else `None`."""
    assert isinstance(node, cst.Call)
    if matches(node.func, m.Name("len")):  # len(None) tells nothing
        return
    for number, arg in enumerate(node.args):
        if arg.keyword is not None and arg.keyword.value in UNSEEN:
            continue
        last = number == len(node.args) - 1 and number > 0
        if arg.keyword is not None or arg.star or last:
            yield _with_args(node, [*node.args[:number], *node.args[number + 1 :]])
        elif not (isinstance(arg.value, cst.Name) and arg.value.value == "None"):
            yield _with_args(node, [*node.args[:number], arg.with_changes(value=cst.Name("None")), *node.args[number + 1 :]])


def _with_args(node: cst.Call, args: Sequence[cst.Arg]) -> cst.Call:
    if args and not node.args[-1].comma and len(args) < len(node.args):
        args = [*args[:-1], args[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]
    return node.with_changes(args=args)


def _is_inverted_anyway(test: cst.BaseExpression) -> bool:
    """Whether one of mutmut's own operators already turns this condition round."""
    if isinstance(test, cst.Comparison):
        return len(test.comparisons) == 1 and isinstance(
            test.comparisons[0].operator, cst.Equal | cst.NotEqual | cst.Is | cst.IsNot | cst.In | cst.NotIn
        )
    return isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not)


def _negated(test: cst.BaseExpression) -> cst.UnaryOperation:
    inner = test if test.lpar else test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return cst.UnaryOperation(cst.Not(), inner)
