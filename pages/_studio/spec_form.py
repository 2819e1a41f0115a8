"""Form fields made from the specs: every field of a run can be seen and changed, with its own description as help."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

from llmrec_core.specs import RunSpec, Spec
from llmrec_core.specs.titles import field_title

Kind = Literal["choice", "switch", "int", "float", "text", "list"]


@dataclass(frozen=True)
class FormField:
    """One leaf of a spec. ``path`` is dotted, as ``--set`` takes it; ``low`` and ``high`` are inclusive."""

    path: str
    title: str
    help: str
    value: Any
    kind: Kind
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    optional: bool = False

    @property
    def section(self) -> str:
        """The room of the spec it belongs to, for people."""
        if ".tuning." in f".{self.path}.":
            return "Tuning"
        if ".behaviour." in self.path:
            return "Behaviour"
        if ".retriever." in self.path:
            return "Candidates"
        head = self.path.partition(".")[0]
        return {
            "split": "Split",
            "recommender": "Recommender",
            "prompt": "Prompt",
            "training": "Training",
            "evaluation": "Evaluation",
        }.get(head, "Run")


#: Fields that the run store, not a person, fills in, or that only make sense with another form.
_NOT_FOR_FORMS = frozenset(
    {
        "kind",
        "preset",
        "parent_run",
        "compression",
        "continue_from",
        "dataset.name",
        "dataset.version",
        "prompt.source",
        "policies",
        "policy_depth",
    }
)


def form_fields(spec: RunSpec, exclude: Collection[str] = ()) -> list[FormField]:
    """Every editable leaf of ``spec`` that is not in ``exclude``, in the order of the specs."""
    hidden = _NOT_FOR_FORMS | frozenset(exclude)
    return [field for field in _walk(spec, "") if field.path not in hidden and not field.path.endswith("family")]


def spec_fields(spec: Spec, prefix: str) -> list[FormField]:
    """Every leaf of one part of a spec; ``prefix`` is its dotted path with a dot behind, or ""."""
    return list(_walk(spec, prefix))


def _walk(spec: Spec, prefix: str) -> Iterator[FormField]:
    for name, info in type(spec).model_fields.items():
        value = getattr(spec, name)
        path = f"{prefix}{name}"
        if isinstance(value, Spec):
            yield from _walk(value, f"{path}.")
        elif not (isinstance(value, tuple) and value and isinstance(value[0], Spec)):
            found = _leaf(path, info, value)
            if found is not None:
                yield found


def _leaf(path: str, info: FieldInfo, value: Any) -> FormField | None:
    inner, optional = _without_none(info.annotation)
    low, high = _bounds(info, inner)
    title = field_title(path.rpartition(".")[2], info)
    field = FormField(path, title, info.description or "", value, "text", optional=optional)
    if get_origin(inner) is Literal:
        return replace(field, kind="choice", choices=tuple(get_args(inner)))
    if inner is bool:
        return replace(field, kind="switch")
    if inner in (int, float):
        return replace(field, kind="int" if inner is int else "float", low=low, high=high)
    if get_origin(inner) is tuple:
        return replace(field, kind="list")
    return field if inner is str else None


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return annotation, False


def _bounds(info: FieldInfo, inner: Any) -> tuple[float | None, float | None]:
    low = high = None
    for rule in info.metadata:
        # An open bound of a float has no nearest value to offer; the spec itself refuses it in words.
        step = 1 if inner is int else None
        if getattr(rule, "ge", None) is not None:
            low = rule.ge
        elif getattr(rule, "gt", None) is not None and step:
            low = rule.gt + step
        if getattr(rule, "le", None) is not None:
            high = rule.le
        elif getattr(rule, "lt", None) is not None and step:
            high = rule.lt - step
    return low, high


def edit_field(field: FormField, key: str, title: str | None = None) -> Any:
    """The widget that fits ``field``; returns plain data for ``override_spec``."""
    title = title or field.title
    if field.kind == "choice":
        return st.selectbox(
            title,
            field.choices,
            index=field.choices.index(field.value),
            key=key,
            help=field.help,
            persist_state="session",
        )
    if field.kind == "switch":
        return st.toggle(title, value=field.value, key=key, help=field.help, persist_state="session")
    if field.kind in ("int", "float"):
        return _number(field, key, title)
    if field.kind == "list":
        text = st.text_input(
            title,
            value=", ".join(str(v) for v in field.value or ()),
            key=key,
            help=f"{field.help} (separated by commas)",
            placeholder="automatic" if "empty means" in field.help else None,
            persist_state="session",
        )
        found = [_number_or_text(part) for part in (p.strip() for p in text.split(",")) if part]
        return None if field.optional and not found else found
    return st.text_input(title, value=field.value or "", key=key, help=field.help, persist_state="session")


def _number(field: FormField, key: str, title: str) -> int | float | None:
    cast: type[int] | type[float] = int if field.kind == "int" else float
    # Streamlit wants all numbers of a field to be of one type; its overloads cannot say "the same one".
    options: dict[str, Any] = {
        "value": None if field.value is None else cast(field.value),
        "min_value": None if field.low is None else cast(field.low),
        "max_value": None if field.high is None else cast(field.high),
        "step": 1 if field.kind == "int" else _step(field.value),
        "format": "%d" if field.kind == "int" else "%g",
    }
    # Without a number nothing is bounded: every user is tested.
    unset = "automatic" if "empty means" in field.help else "not set"
    nothing = "no limit" if field.path.rpartition(".")[2].startswith("max_") else unset
    value: int | float | None = st.number_input(
        title, placeholder=nothing, key=key, help=field.help, persist_state="session", **options
    )
    if value is None and not field.optional:
        return field.value
    return value


def _step(value: float | None) -> float:
    """A tenth of the value's own power of ten: 0.0001 moves by 0.00001, 16 by 1."""
    if not value:
        return 0.01
    power = 1.0
    while power > abs(value):
        power /= 10
    while power * 10 <= abs(value):
        power *= 10
    return power / 10


def _number_or_text(text: str) -> int | float | str:
    for cast in (int, float):
        try:
            return cast(text)
        except ValueError:
            continue
    return text
