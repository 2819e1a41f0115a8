"""A run and the runs that were compressed from it, side by side: what the Compress screen and command show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from llmrec_core.errors import SpecError
from llmrec_core.runs.folder import Run
from llmrec_core.runs.store import RunStore
from llmrec_core.specs import (
    LOWER_IS_BETTER,
    CrossEncoderSpec,
    GenerativeSpec,
    ListwiseSpec,
    RunSpec,
    parse_run_spec,
    ranker_of,
)
from llmrec_core.specs.compression import COMPRESSION_WORDS, COMPRESSIONS, CompressionSpec, RecoveryFields
from llmrec_core.specs.titles import field_title

#: Below this rank correlation with its parent a child is said to order candidates otherwise.
_SAME_ORDER = 0.9
#: Differences of a validation metric that say nothing: a few hundred rows.
_NOISE = 0.01
#: What to do about a loss, for methods that train nothing after.
_ADVICE = {
    "int8": "Leave the numbers between the layers as they are (activations=float).",
    "int4": "Let fewer weights share a scale (group_size=16), or choose int8.",
    "distil-two-tower": "Two vectors say less than a model that reads both texts. Let the teacher judge more histories "
    "(n_histories), or keep the parent to re-rank what the towers find.",
    "onnx": "Export without rounding (int8=false).",
}
#: Families that hold a model of their own and are made smaller where they are trained: family -> how.
_SMALLER_BY_TRAINING = {
    "sequential": "a sequence model is small already; train it with a smaller width or fewer layers "
    "(recommender.width=64)",
    "two-tower": "two towers rank by a product of vectors made beforehand; train them with a smaller width or n_text "
    "(recommender.width=64)",
}


def methods_for(spec: RunSpec) -> list[str]:
    """Names of what can be done to the model of such a run; see :func:`why_not` where that is nothing."""
    how = spec.compression
    if spec.kind == "evaluate" or (how is not None and how.method in ("int8", "int4", "onnx")):
        return []
    part = ranker_of(spec.recommender)
    if isinstance(part, ListwiseSpec | GenerativeSpec):
        return ["int8", "int4"]
    return list(COMPRESSION_WORDS) if isinstance(part, CrossEncoderSpec) else []


def why_not(run: Run, method: str | None = None) -> tuple[str, str]:
    """Why a run (or a run by this method) cannot be compressed, and what to do instead: two sentences."""
    spec, how = run.spec, run.spec.compression
    if spec.kind == "evaluate":
        return f"run {run.run_id} measured another run again and has no model of its own.", (
            f"Compress run {spec.parent_run}."
        )
    if how is not None and how.method in ("int8", "int4", "onnx"):
        fix = f"Compress the run that it was made from: {spec.parent_run}"
        fix += ", with the field int8 switched on for an ONNX file in 8 bits." if method == "onnx" else "."
        return f"run {run.run_id} is compressed to its end already ({COMPRESSION_WORDS[how.method][0]}).", fix
    known = methods_for(spec)
    if known:
        does = "writes titles" if isinstance(ranker_of(spec.recommender), GenerativeSpec) else "orders lists"
        return f"{method} is for models that read one candidate a prompt; this run {does}.", (
            f"Use {' or '.join(known)}."
        )
    family = ranker_of(spec.recommender).family
    readers = "choose a run whose model reads prompts (a cross-encoder, or two stages with one)."
    instead = _SMALLER_BY_TRAINING.get(family)
    return (
        f"a {family} model neither reads whole prompts nor writes titles, and only models that do are compressed here.",
        (f"{instead[0].upper()}{instead[1:]}, or {readers}" if instead else f"{readers[0].upper()}{readers[1:]}"),
    )


def compression_run(parent: Run, method: str, fields: Mapping[str, Any]) -> RunSpec:
    """What compresses a finished run: measured as the parent was, on the same data and split.

    Args:
        fields: dotted path in the method's spec -> value.

    Raises:
        SpecError: an unknown method or one that does not fit this run, or a field that it does not have or refuses.
    """
    if method not in COMPRESSIONS:
        raise SpecError(
            f"there is no method {method[:40]!r}.", where="--method", fix=f"Known are {', '.join(COMPRESSIONS)}."
        )
    if method not in methods_for(parent.spec):
        what, fix = why_not(parent, method)
        raise SpecError(what, where="RUN", fix=fix)
    how: dict[str, Any] = {"method": method}
    for path, value in fields.items():
        node = how
        *owners, last = path.removeprefix("compression.").split(".")
        for owner in owners:
            node = node.setdefault(owner, {})
            if not isinstance(node, dict):
                raise SpecError(
                    f"{path!r} is no field of {method}.", where="--set", fix="See `llmrec compress --help`."
                )
        node[last] = value
    raw = parent.spec.model_dump(mode="json")
    if method == "distil-two-tower":
        raw["recommender"] = {"family": "two-tower", **how.get("student", {})}
    name = (
        f"{parent.spec.name or parent.spec.preset or parent.spec.recommender.family} · {COMPRESSION_WORDS[method][0]}"
    )
    again: dict[str, Any] = {"kind": "compress", "parent_run": parent.run_id, "compression": how}
    if raw.get("continual") is None:
        # A continual run's split depends on the run it went on from; other runs need no memory of theirs.
        again["continue_from"] = None
    return parse_run_spec(raw | again | {"name": name[:120]})


def compressed_children(store: RunStore, run_id: str) -> list[Run]:
    """Runs of kind compress made from a run, oldest first, whatever their state."""
    found = [run for run in store.list() if run.spec.kind == "compress" and run.spec.parent_run == run_id]
    return sorted(found, key=lambda run: run.run_id)


def family_rows(store: RunStore, run_id: str) -> list[dict[str, Any]]:
    """The parent, then each finished child; empty where it has none.

    Each: run_id, method, title, settings (what was set otherwise than by default, in words), size_bytes, memory_bytes,
    candidates_per_s, size_share (of the parent's), speed_ratio (child / parent, measured side by side), metric, value;
    for a child its difference to the parent with ``ci_low``, ``ci_high`` (None where it could not be compared), and
    where they were measured ``agreement`` and ``alone`` (see ``compression.measure``), else None; ``advice``: what to
    do about a loss, or None.
    """
    rows: list[dict[str, Any]] = []
    for run in compressed_children(store, run_id):
        if run.status.state != "done" or run.spec.compression is None:
            continue
        found = store.result(run.run_id)["compression"]
        parent, child, alone = found["parent"], found["child"], found.get("alone")
        if not rows:
            rows.append(
                {
                    "run_id": run_id,
                    "method": "parent",
                    "title": "The run itself",
                    "settings": "",
                    **parent,
                    "size_share": 1.0,
                    "speed_ratio": 1.0,
                    "metric": found["metric"],
                    "value": found["parent_value"],
                    "difference": None,
                    "agreement": None,
                    "alone": None,
                    "advice": None,
                }
            )
        if alone is not None:
            rows[0]["alone"] = alone | {"value": alone["parent"]}
        row = {
            "run_id": run.run_id,
            "method": found["method"],
            "title": COMPRESSION_WORDS[found["method"]][0],
            "settings": settings_in_words(run.spec.compression),
            **child,
            "size_share": child["size_bytes"] / parent["size_bytes"],
            "speed_ratio": found["speed_ratio"],
            "metric": found["metric"],
            "value": found["value"],
            "difference": found["difference"],
            "agreement": found.get("agreement"),
            "alone": None if alone is None else alone | {"value": alone["child"]},
        }
        rows.append(row | {"advice": advice(row, run.spec.compression)})
    return rows


def settings_in_words(spec: CompressionSpec) -> str:
    """What differs from the method's defaults: "layers taken out 3, epochs of training 0"; else empty."""
    told = []

    def tell(part: Any, plain: Any) -> None:
        for name, info in type(part).model_fields.items():
            value, usual = getattr(part, name), getattr(plain, name)
            if value == usual:
                continue
            if isinstance(value, BaseModel) and type(value) is type(usual):
                tell(value, usual)
                continue
            shown = (
                ("off", "on")[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
            )
            told.append(f"{field_title(name, info)[0].lower()}{field_title(name, info)[1:]} {shown}")

    tell(spec, type(spec)())
    return ", ".join(told)


def advice(row: Mapping[str, Any], spec: CompressionSpec) -> str | None:
    """What to do where a child lost quality; None: nothing shows that it did.

    It did where the interval of its difference to the parent lies on the worse side of 0, or where it orders
    candidates otherwise (see ``agreement``) and its validation metric is worse too.
    """
    found, alone = row["difference"], row["alone"]
    surely = found is not None and _worse(row["metric"], found["ci_low"], found["ci_high"])
    otherwise = row["agreement"] is not None and row["agreement"] < _SAME_ORDER
    told = alone is not None and _gain(alone["metric"], alone["child"], alone["parent"]) < -_NOISE
    if not (surely or (otherwise and told)):
        return None
    if isinstance(spec, RecoveryFields):
        if not spec.epochs:
            return "Nothing was taught after the cut: leave epochs above 0, or choose distil."
        more = f"Teach it longer (epochs={max(2, round(spec.epochs * 2))})"
        return (
            f"{more}, or keep more layers." if spec.method == "distil" else f"{more}, take out less, or choose distil."
        )
    return _ADVICE.get(spec.method)


def _gain(metric: str, child: float, parent: float) -> float:
    """How much better a child is; below 0: worse."""
    return parent - child if metric in LOWER_IS_BETTER else child - parent


def _worse(metric: str, low: float, high: float) -> bool:
    """Whether an interval of differences lies on the worse side of 0."""
    return low > 0 if metric in LOWER_IS_BETTER else high < 0
