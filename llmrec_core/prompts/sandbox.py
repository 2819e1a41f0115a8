"""Templates that strangers wrote, run without risk: a small part of Jinja2 under an allow-list and a meter.

Three fences, each enough for most attacks: the syntax tree may hold only harmless kinds of nodes and known names;
values are reached through their named fields alone, never through Python attributes; and every loop, list and text is
charged to a meter, so that a render ends soon and stays small. Used for prompts, and for the chat templates of models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import jinja2
import jinja2.meta
import jinja2.visitor
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llmrec_core.errors import LLMRecError, TemplateError
from llmrec_core.prompts import _filters as filters
from llmrec_core.prompts import _operations as ops
from llmrec_core.prompts._cutting import halves, walk
from llmrec_core.prompts._meter import METER, UNMETERED, Refused
from llmrec_core.prompts._text import Text, concat

#: Faults that a template can cause at run time; anything else is our own and passes through.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    Refused,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)

_ALLOWED_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.With,
    nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword,
    nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice,
    nodes.Concat, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos,
    nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow,
)  # fmt: skip

_NODE_WORDS: Mapping[type[nodes.Node], str] = {
    nodes.Macro: "macros",
    nodes.CallBlock: "call blocks",
    nodes.FilterBlock: "filter blocks",
    nodes.AssignBlock: "set blocks (write {% set name = value %})",
    nodes.Block: "blocks",
    nodes.Extends: "parents to extend",
    nodes.Include: "includes",
    nodes.Import: "imports",
    nodes.FromImport: "imports",
}

Result = TypeVar("Result")

#: Names that Jinja gives a meaning of its own.
_RESERVED_NAMES = frozenset({"self", "super", "caller", "varargs", "kwargs"})
#: Filters put into the tree by :class:`_Rewriter`; the spaces keep them out of a template's reach.
_BUILT, _JOINED, _LOOPED, _WEIGHED = "built here", "joined here", "looped here", "weighed here"


@dataclass(frozen=True)
class Limits:
    """What one template may be and spend. One unit of fuel is about one step of the template."""

    max_source_chars: int = 20_000
    max_nodes: int = 6_000
    max_depth: int = 60
    max_loop_depth: int = 3
    fuel: int = 200_000
    max_text_chars: int = 64_000
    max_list: int = 1_000


class _Undefined(jinja2.StrictUndefined):
    """Strict, and without any attribute to walk on from."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, ops.Record):
            found = obj.ready.get(attribute)
            if found is not None:
                return found
            if isinstance(obj, ops.Fields) and (found := self._method(obj, attribute)) is not None:
                return found
            found = obj.lookup(attribute)
            if found is ops.MISSING:
                return self._missing(obj, attribute)
            obj.ready[attribute] = found
            return found
        if type(obj) is LoopContext and attribute in filters.LOOP_FIELDS:
            return getattr(obj, attribute)
        found = self._method(obj, attribute)
        if found is not None:
            return found
        if type(obj) is Namespace:
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self._missing(obj, attribute)
        if type(obj) is LoopContext and attribute == "cycle":
            return filters.Function(obj.cycle)
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return self._missing(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, str):
            argument = str.__str__(argument)
            if isinstance(obj, ops.Record):
                found = obj.lookup(argument)
                return self._missing(obj, argument) if found is ops.MISSING else found
            if isinstance(obj, dict):
                return obj[argument] if argument in obj else self._missing(obj, argument)
            return self.getattr(obj, argument)
        if isinstance(argument, int) and isinstance(obj, (str, list, tuple, range)):
            if -len(obj) <= argument < len(obj):
                return obj[argument]
            return self.undefined(hint=f"there is no element {argument} in {ops.describe(obj)} of {len(obj)}")
        ops.require(obj)
        ops.require(argument)
        return self.undefined(hint=f"{ops.describe(obj)} has no element of that name")

    @staticmethod
    def _method(obj: Any, name: str) -> filters.Function | None:
        if isinstance(obj, str):
            run = filters.TEXT_METHODS.get(name)
        elif isinstance(obj, (ops.Fields, dict)):
            run = filters.MAPPING_METHODS.get(name)
        else:
            return None
        return None if run is None else filters.Function(run, obj)

    def _missing(self, obj: Any, name: str) -> Any:
        ops.require(obj)
        if isinstance(obj, ops.Record):
            known = ", ".join(str(field) for field in obj.known_fields()) or "none"
            hint = f"there is no field {name[:60]!r}; known fields are: {known[:600]}"
        else:
            hint = f"{ops.describe(obj)} has no field {name[:60]!r}"
        return self.undefined(hint=hint, name=name)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(__obj, filters.Function):
            raise Refused(f"{ops.describe(ops.require(__obj))} cannot be called")
        # Compiled loops and blocks pass these for functions that take the context; ours never do.
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        return __obj(*args, **kwargs)

    def is_safe_callable(self, obj: Any) -> bool:
        return isinstance(obj, filters.Function)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return ops.binary(operator, left, right)


class _Rewriter(jinja2.visitor.NodeTransformer):
    """Routes what Jinja would do natively (loops, ~, comparisons, literals) through the metered operations."""

    def _wrap(self, node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight = 1 + sum(1 for part in (*node.body, node.test) if part is not None for _ in walk(part))
        self.generic_visit(node)
        node.iter = self._wrap(node.iter, _LOOPED, nodes.Const(weight, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._wrap(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._weighed(node.expr)
        for operand in node.ops:
            operand.expr = self._weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._weighed(node.node)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        node.node = self._weighed(node.node)
        node.args = [self._weighed(arg) for arg in node.args]
        return node

    def _weighed(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else self._wrap(node, _WEIGHED)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._wrap(node, _BUILT)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else self._wrap(node, _BUILT)


class Sandbox:
    """Compiles templates under :class:`Limits`.

    Args:
        variables: names that every render will give; None: names are not checked before rendering.
        functions: calls offered beside ``range`` and ``namespace``.
        limits: see :class:`Limits`.
    """

    _FUNCTIONS: ClassVar[Mapping[str, Callable[..., Any]]] = {"range": filters.bounded_range, "namespace": Namespace}

    def __init__(
        self,
        variables: Collection[str] | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.variables = None if variables is None else tuple(variables)
        self.limits = limits or Limits()
        env = _Environment(
            undefined=_Undefined,
            finalize=ops.output,
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            autoescape=False,
            cache_size=0,
        )
        env.tests = {name: test for name, test in env.tests.items() if name in filters.TESTS}
        env.filters = {
            **filters.FILTERS,
            _BUILT: ops.built,
            _JOINED: ops.joined,
            _LOOPED: ops.looped,
            _WEIGHED: ops.weigh,
        }
        offered = {**self._FUNCTIONS, **(functions or {})}
        env.globals = {name: filters.Function(run) for name, run in offered.items()}
        self._env = env

    def compile(self, source: str, where: str = "template") -> Program:
        """A checked, compiled template.

        Raises:
            TemplateError: malformed, too large, names unknown variables, or uses what the sandbox does not offer.
        """
        return self._guarded(where, lambda: self._program(self._tree(source, where), where))

    def compile_halves(self, source: str, names: Collection[str], where: str = "template") -> Halves | None:
        """The same template cut before the first part that reads any of ``names``.

        What both halves print and spend, one behind the other, is what :meth:`compile` of the whole prints and spends.
        None: there is nothing before that part, or a value set in one half is read in the other.

        Raises:
            TemplateError: as :meth:`compile`.
        """

        def work() -> Halves | None:
            cut = halves(self._tree(source, where), names)
            return None if cut is None else (self._program(cut[0], where), self._program(cut[1], where))

        return self._guarded(where, work)

    def _guarded(self, where: str, work: Callable[[], Result]) -> Result:
        """``work`` under the meter, with its faults in words."""
        self._start_meter()
        try:
            return work()
        except _TEMPLATE_FAULTS as error:
            raise _explained(error, where, getattr(error, "lineno", None)) from None
        finally:
            METER.fuel = UNMETERED

    def _tree(self, source: str, where: str) -> nodes.Template:
        """The syntax tree of a template that keeps the rules."""
        if len(source) > self.limits.max_source_chars:
            raise TemplateError(
                f"the template has {len(source):,} characters; at most {self.limits.max_source_chars:,} are allowed.",
                where=where,
                fix="Shorten it.",
            )
        try:
            source.encode()
        except UnicodeEncodeError as error:
            raise TemplateError(
                f"character {error.start + 1} is half of a surrogate pair and no character by itself.",
                where=where,
                fix="Remove it.",
            ) from None
        tree = self._env.parse(source)
        self._check(tree)
        return tree

    def _program(self, tree: nodes.Template, where: str) -> Program:
        """A checked tree, compiled."""
        tree.set_environment(self._env)
        reads = frozenset(jinja2.meta.find_undeclared_variables(tree)) - set(self._env.globals)
        tree = _Rewriter().visit(tree)
        tree.set_environment(self._env)
        code = self._env.compile(tree)
        return Program(self, jinja2.Template.from_code(self._env, code, self._env.globals), where, reads)

    def _start_meter(self) -> None:
        METER.fuel = self.limits.fuel
        METER.max_text = self.limits.max_text_chars
        METER.max_list = self.limits.max_list

    def _check(self, tree: nodes.Template) -> None:
        """Walks the tree as the author wrote it; iterative, since its depth is the author's choice."""
        pending: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
        count = 0
        while pending:
            node, depth, loops = pending.pop()
            count += 1
            if count > self.limits.max_nodes:
                raise _fault("the template has too many parts", node)
            if depth > self.limits.max_depth:
                raise _fault(f"expressions or blocks are nested more than {self.limits.max_depth} deep", node)
            self._check_node(node)
            if isinstance(node, nodes.For):
                loops += 1
                if node.recursive:
                    raise _fault("recursive loops are not offered here", node)
                if loops > self.limits.max_loop_depth:
                    raise _fault(f"loops are nested more than {self.limits.max_loop_depth} deep", node)
            pending.extend((child, depth + 1, loops) for child in node.iter_child_nodes())
        if self.variables is not None:
            unknown = jinja2.meta.find_undeclared_variables(tree) - set(self.variables) - set(self._env.globals)
            for node in walk(tree):
                if isinstance(node, nodes.Name) and node.name in unknown and node.ctx == "load":
                    raise _fault(
                        f"there is no variable {node.name[:60]!r}; known are {', '.join(self.variables)}", node
                    )

    def _check_node(self, node: nodes.Node) -> None:
        if not isinstance(node, _ALLOWED_NODES):
            word = _NODE_WORDS.get(type(node), type(node).__name__.lower())
            raise _fault(f"templates here have no {word}", node)
        if isinstance(node, nodes.Filter) and node.name not in filters.FILTERS:
            raise _fault(f"unknown filter {node.name[:40]!r}; known are {', '.join(sorted(filters.FILTERS))}", node)
        if isinstance(node, nodes.Test) and node.name not in filters.TESTS:
            raise _fault(f"unknown test {node.name[:40]!r}; known are {', '.join(sorted(filters.TESTS))}", node)
        if isinstance(node, nodes.Name) and node.name in _RESERVED_NAMES:
            raise _fault(f"the name {node.name!r} is not offered here", node)
        if isinstance(node, nodes.Name) and node.ctx != "load" and node.name in self._env.globals:
            raise _fault(f"the name {node.name!r} belongs to a function", node)
        if isinstance(node, (nodes.Getattr, nodes.NSRef)) and node.attr.startswith("_"):
            raise _fault(f"the field {node.attr[:60]!r} is private to Python", node)
        if isinstance(node, (nodes.Call, nodes.Filter, nodes.Test)) and (node.dyn_args or node.dyn_kwargs):
            raise _fault("* and ** in calls are not offered here", node)
        if isinstance(node, nodes.Call):
            self._check_call(node)

    def _check_call(self, node: nodes.Call) -> None:
        called = node.node
        if isinstance(called, nodes.Name) and called.name in self._env.globals:
            return
        methods = {*filters.TEXT_METHODS, *filters.MAPPING_METHODS, "cycle"}
        if isinstance(called, nodes.Getattr) and called.attr in methods:
            return
        name = called.name if isinstance(called, nodes.Name) else getattr(called, "attr", "this")
        known = ", ".join([*sorted(self._env.globals), *(f".{method}" for method in sorted(methods))])
        raise _fault(f"{str(name)[:40]!r} cannot be called; calls are {known}", node)


class Program:
    """A compiled template; safe to render from several threads."""

    def __init__(self, sandbox: Sandbox, template: jinja2.Template, where: str, reads: frozenset[str]) -> None:
        self._sandbox = sandbox
        self._template = template
        self._where = where
        #: Names of the variables that the template reads.
        self.reads = reads

    @property
    def limits(self) -> Limits:
        return self._sandbox.limits

    def pieces(self, variables: Mapping[str, Any]) -> list[str]:
        """The output in pieces; those of type :class:`Text` carry marks.

        Raises:
            TemplateError: a missing field, values that do not go together, or a limit.
        """
        return self.drawn(variables)[0]

    def drawn(self, variables: Mapping[str, Any]) -> tuple[list[str], int]:
        """:meth:`pieces`, and the fuel that they took.

        Raises:
            TemplateError: as :meth:`pieces`.
        """
        self._sandbox._start_meter()
        limit = self._sandbox.limits.max_text_chars
        template = self._template
        found: list[str] = []
        total = 0
        try:
            for piece in template.root_render_func(template.new_context(dict(variables))):
                found.append(piece)
                total += len(piece)
                if total > limit:
                    raise Refused(f"the text grew beyond {limit:,} characters")
            return found, self.limits.fuel - METER.fuel
        except LLMRecError:
            raise
        except _TEMPLATE_FAULTS as error:
            raise _explained(error, self._where, self._line(error)) from None
        finally:
            METER.fuel = UNMETERED

    def render(self, variables: Mapping[str, Any]) -> Text:
        """The output as one text.

        Raises:
            TemplateError: as :meth:`pieces`.
        """
        text = concat(self.pieces(variables))
        return text if isinstance(text, Text) else Text(text)

    def _line(self, error: BaseException) -> int | None:
        """The template's line where ``error`` came up: its last frame in the compiled code."""
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line


#: A template's beginning and its end.
Halves = tuple[Program, Program]


def _fault(message: str, node: nodes.Node) -> jinja2.TemplateSyntaxError:
    return jinja2.TemplateSyntaxError(message, node.lineno)


def _explained(error: BaseException, where: str, line: int | None) -> TemplateError:
    if isinstance(error, RecursionError):
        what = "expressions are nested too deeply"
    elif isinstance(error, MemoryError):
        what = "the template needs too much memory"
    elif isinstance(error, ZeroDivisionError):
        what = "a division by zero"
    elif isinstance(error, OverflowError) or "integer string conversion" in str(error):
        what = "a number is too large"
    else:
        what = (error.message if isinstance(error, jinja2.TemplateError) else str(error)) or type(error).__name__
        what = " ".join(what.split())[:1000]
    return TemplateError(
        f"{what.rstrip('.')}.",
        where=f"{where}, line {line}" if line else where,
        fix="Correct the template.",
    )
