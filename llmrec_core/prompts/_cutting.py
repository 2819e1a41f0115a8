"""Cutting a template in two, so that what does not depend on the candidate is drawn once for all candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from jinja2 import nodes


def walk(node: nodes.Node) -> Iterator[nodes.Node]:
    """``node`` and everything in it."""
    pending = [node]
    while pending:
        found = pending.pop()
        yield found
        pending.extend(found.iter_child_nodes())


def halves(tree: nodes.Template, names: Collection[str]) -> tuple[nodes.Template, nodes.Template] | None:
    """The tree before the first part of its outermost level that reads any of ``names``, and from there on.

    None: one half would be empty, or a value set in one half is read in the other.
    """
    parts = list(_parts(tree.body))
    cut = next((n for n, part in enumerate(parts) if _names(part) & set(names)), len(parts))
    head, tail = parts[:cut], parts[cut:]
    if not head or not tail:
        return None
    head_reads, tail_reads = (frozenset[str]().union(*map(_names, half)) for half in (head, tail))
    head_sets, tail_sets = (frozenset[str]().union(*map(_kept, half)) for half in (head, tail))
    if head_sets & (tail_reads | tail_sets) or tail_sets & head_reads:
        return None
    return nodes.Template(head, lineno=1), nodes.Template(tail, lineno=1)


def _parts(body: list[nodes.Node]) -> Iterator[nodes.Node]:
    """The statements of a template's outermost level; of an output, what it prints one by one."""
    for node in body:
        if isinstance(node, nodes.Output):
            for printed in node.nodes:
                yield nodes.Output([printed], lineno=printed.lineno)
        else:
            yield node


def _names(node: nodes.Node) -> frozenset[str]:
    """Every name that stands in ``node``, whatever for."""
    return frozenset(found.name for found in walk(node) if isinstance(found, (nodes.Name, nodes.NSRef)))


def _kept(node: nodes.Node) -> frozenset[str]:
    """Names that still have a value behind ``node``: loops and ``with`` keep theirs to themselves, ``if`` does not."""
    if isinstance(node, nodes.Assign):
        return _names(node.target)
    if isinstance(node, nodes.If):
        return frozenset[str]().union(*map(_kept, (*node.body, *node.elif_, *node.else_)))
    return frozenset()
