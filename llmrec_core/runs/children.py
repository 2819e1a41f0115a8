"""A run and the runs that were compressed from it, side by side: what the Compress screen and command show."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llmrec_core.errors import InputError, LLMRecError, ModelError, SpecError
from llmrec_core.runs.folder import Run
from llmrec_core.runs.store import RunStore
from llmrec_core.saved import HEAD_FILE, read_head
from llmrec_core.specs import (
    LOWER_IS_BETTER,
    CrossEncoderSpec,
    GenerativeSpec,
    ListwiseSpec,
    RunSpec,
    parse_run_spec,
    ranker_of,
)
from llmrec_core.specs.compression import (
    COMPRESSION_WORDS,
    COMPRESSIONS,
    CompressionSpec,
    DistilSpec,
    DistilTwoTowerSpec,
    OnnxSpec,
    PruneHeadsSpec,
    PruneLayersSpec,
    RecoveryFields,
)
from llmrec_core.specs.titles import field_title
from llmrec_core.workspace import check_name

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
#: Ways of tuning that leave the weights as they came -> what they learn instead.
_BESIDE_WEIGHTS = {
    "prefix": "states before the text",
    "prompt": "states before the text",
    "bottleneck": "small networks inside the layers",
}
#: Kinds of models whose heads can be taken out, and that have an ONNX form. ``models.compact`` and
#: ``models.tuning_soft`` decide; that loads PyTorch, so it is said here once more (a test compares them).
PRUNABLE = frozenset(
    {"bert", "camembert", "electra", "llama", "mistral", "qwen2", "qwen3", "roberta", "smollm3", "xlm-roberta"}
)
GRAPHS = frozenset({"bert", "electra", "gpt2", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"})
#: Packages of the extra "onnx" that an export takes.
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def methods_for(spec: RunSpec) -> list[str]:
    """Names of what can be done to the model of such a run; see :func:`why_not` for what is not among them."""
    how = spec.compression
    if spec.kind == "evaluate" or (how is not None and how.method in ("int8", "int4", "onnx")):
        return []
    part = ranker_of(spec.recommender)
    if isinstance(part, ListwiseSpec | GenerativeSpec):
        return [] if part.tuning.method in _BESIDE_WEIGHTS else ["int8", "int4"]
    if not isinstance(part, CrossEncoderSpec):
        return []
    # Towers ask their teacher for scores alone; all else begins with one set of weights.
    return ["distil-two-tower"] if part.tuning.method in _BESIDE_WEIGHTS else list(COMPRESSION_WORDS)


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
    known, part = methods_for(spec), ranker_of(spec.recommender)
    if isinstance(part, CrossEncoderSpec | ListwiseSpec | GenerativeSpec) and part.tuning.method in _BESIDE_WEIGHTS:
        place = "recommender.tuning" if part is spec.recommender else "recommender.ranker.tuning"
        return (
            f"tuning by {part.tuning.method} learns {_BESIDE_WEIGHTS[part.tuning.method]}, which cannot be merged into "
            f"the weights, and {method or 'compression'} needs them merged.",
            f"Train it with lora, adalora or ia3 ({place}.method=lora) and compress that run"
            + (f", or use {' or '.join(known)}, which needs the model's scores alone." if known else "."),
        )
    if known:
        does = "writes titles" if isinstance(part, GenerativeSpec) else "orders lists"
        return f"{method} is for models that read one candidate a prompt; this run {does}.", (
            f"Use {' or '.join(known)}."
        )
    family = part.family
    readers = "choose a run whose model reads prompts (a cross-encoder, or two stages with one)."
    instead = _SMALLER_BY_TRAINING.get(family)
    return (
        f"a {family} model neither reads whole prompts nor writes titles, and only models that do are compressed here.",
        (f"{instead[0].upper()}{instead[1:]}, or {readers}" if instead else f"{readers[0].upper()}{readers[1:]}"),
    )


def compression_run(
    parent: Run, method: str, fields: Mapping[str, Any], at_hand: Callable[[str], object] | None = None
) -> RunSpec:
    """What compresses a finished run: measured as the parent was, on the same data and split.

    Args:
        fields: dotted path in the method's spec -> value.
        at_hand: raises where a model of that name cannot be read (``models.catalogue.usable_model``); None: whether
            the model below the run is still there is not looked at.

    Raises:
        SpecError: an unknown method, one that does not fit this run or the model in it, a model below the run that is
            gone, or a field that the method does not have or refuses.
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
    child = parse_run_spec(raw | again | {"name": name[:120]})
    assert child.compression is not None
    refused = _refused(parent, child.compression) or (None if at_hand is None else _gone_below(parent, at_hand))
    if refused is not None:
        raise refused
    return child


def _refused(parent: Run, how: CompressionSpec) -> SpecError | None:
    """What the worker would say late, as far as files of a few kilobytes tell; None where they tell nothing."""
    method = "compression.method"
    if isinstance(how, DistilTwoTowerSpec) and how.student.user != "history":
        return SpecError(
            "a student reads the history's items, not prompts.",
            where="compression.student.user",
            fix="Leave it on history.",
        )
    if isinstance(how, OnnxSpec):
        missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
        if missing:
            return SpecError(
                f"ONNX needs packages that are not installed: {', '.join(missing)}.",
                where=method,
                fix="Install the extra: pip install 'llmrec-studio[onnx]'.",
            )
    config = _model_config(parent)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return None
    if isinstance(how, OnnxSpec) and (kind not in GRAPHS or config.get("sliding_window") is not None):
        return SpecError(
            f"models of the kind {kind} have no ONNX form here: they take no mask from outside.",
            where=method,
            fix=f"Use int8, or a model of one of the kinds {', '.join(sorted(GRAPHS))}.",
        )
    if isinstance(how, RecoveryFields) and kind == "albert":
        return SpecError(
            "albert models share one layer at all depths: no layer or head can be taken out.",
            where=method,
            fix="Use int8 or int4.",
        )
    if isinstance(how, PruneHeadsSpec) and kind not in PRUNABLE:
        return SpecError(
            f"heads of {kind} models cannot be taken out.",
            where=method,
            fix=f"It works for {', '.join(sorted(PRUNABLE))}; prune layers instead, or use int8.",
        )
    n_layers = next((n for n in map(config.get, ("num_hidden_layers", "n_layer", "n_layers")) if isinstance(n, int)), 0)
    if isinstance(how, PruneLayersSpec | DistilSpec) and 0 < n_layers <= how.n_layers:
        cannot = "be taken out of" if isinstance(how, PruneLayersSpec) else "be a smaller student of a model of"
        return SpecError(
            f"{how.n_layers} layers cannot {cannot} {n_layers}.",
            where="compression.n_layers",
            fix=f"Give at most {n_layers - 1}." if n_layers > 1 else "Use int8 or int4.",
        )
    if isinstance(ranker_of(parent.spec.recommender), GenerativeSpec) and config.get("tie_word_embeddings") is False:
        return SpecError(
            "this model writes with a table of words of its own, which compression leaves behind.",
            where="RUN",
            fix="Train on a model that writes with the words it reads with, such as smollm2-135m.",
        )
    return None


def _gone_below(run: Run, at_hand: Callable[[str], object]) -> SpecError | None:
    """Of a run that keeps what it trained alone: why the model below it cannot be read; None where it can."""
    for head in sorted((run.folder / "artifacts" / "recommender").rglob(HEAD_FILE)):
        try:
            told = read_head(head.parent)
        except ModelError:
            continue
        base = told.get("base")
        name = base.get("model") if isinstance(base, dict) else None
        if told.get("whole_model") is not False or not isinstance(name, str):
            continue
        try:
            at_hand(name)
        except LLMRecError as error:
            fix = "Put it back as it was, or run the training again."
            if not Path(name).is_absolute():
                fix = f"Fetch it with `llmrec models get {name}` or in Settings."
            return SpecError(
                f"run {run.run_id} holds only what was trained on top of the model {name!r}, which is no longer at "
                f"hand: {error.what}",
                where="RUN",
                fix=fix,
            )
    return None


def _model_config(run: Run) -> dict[str, Any]:
    """config.json of the model in a run; {} where it is not found, or no mapping.

    Runs that keep what they trained alone have it with the model below, which is looked for under its own name.
    """
    model = getattr(ranker_of(run.spec.recommender), "model", None)
    saved = run.folder / "artifacts" / "recommender"
    places = [saved / "ranker" / "model", saved / "model"]
    if isinstance(model, str) and Path(model).is_absolute() and not model.startswith(("//", "\\\\")):
        places.append(Path(model))
    elif isinstance(model, str) and _is_plain(model):
        # <workspace>/runs/<run>, <workspace>/models/<name>.
        places.append(run.folder.parent.parent / "models" / model)
    for place in places:
        try:
            found = json.loads((place / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _is_plain(name: str) -> bool:
    try:
        check_name(name, "model")
    except InputError:
        return False
    return True


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
