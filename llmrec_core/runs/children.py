"""A run and the runs that were compressed from it, side by side: what the Compress screen and command show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec_core.errors import SpecError
from llmrec_core.runs.folder import Run
from llmrec_core.runs.store import RunStore
from llmrec_core.specs import RunSpec, parse_run_spec
from llmrec_core.specs.compression import COMPRESSION_WORDS, COMPRESSIONS


def compression_run(parent: Run, method: str, fields: Mapping[str, Any]) -> RunSpec:
    """What compresses a finished run: measured as the parent was, on the same data and split.

    Args:
        fields: dotted path in the method's spec -> value.

    Raises:
        SpecError: an unknown method, or a field that it does not have or refuses.
    """
    if parent.spec.kind == "evaluate":
        raise SpecError(
            f"run {parent.run_id} measured another run again and has no model of its own.",
            where="RUN",
            fix=f"Compress run {parent.spec.parent_run}.",
        )
    if method not in COMPRESSIONS:
        raise SpecError(
            f"there is no method {method[:40]!r}.", where="--method", fix=f"Known are {', '.join(COMPRESSIONS)}."
        )
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

    Each: run_id, method, title, size_bytes, memory_bytes, candidates_per_s, size_share (of the parent's), speed_ratio
    (child / parent, measured side by side), metric, value, and for a child its difference to the parent with
    ``ci_low``, ``ci_high`` (None where it could not be compared).
    """
    rows: list[dict[str, Any]] = []
    for run in compressed_children(store, run_id):
        if run.status.state != "done":
            continue
        found = store.result(run.run_id)["compression"]
        parent, child = found["parent"], found["child"]
        if not rows:
            rows.append(
                {
                    "run_id": run_id,
                    "method": "parent",
                    "title": "The run itself",
                    **parent,
                    "size_share": 1.0,
                    "speed_ratio": 1.0,
                    "metric": found["metric"],
                    "value": found["parent_value"],
                    "difference": None,
                }
            )
        rows.append(
            {
                "run_id": run.run_id,
                "method": found["method"],
                "title": COMPRESSION_WORDS[found["method"]][0],
                **child,
                "size_share": child["size_bytes"] / parent["size_bytes"],
                "speed_ratio": found["speed_ratio"],
                "metric": found["metric"],
                "value": found["value"],
                "difference": found["difference"],
            }
        )
    return rows
