"""A spec as a command line, and a preset as the chosen data needs it."""

from __future__ import annotations

import shlex
from typing import Any

import streamlit as st
import yaml

from llmrec_core.presets import PRESETS, preset_spec
from llmrec_core.specs import ContinualSpec, RunSpec
from pages._studio.base import workspace
from pages._studio.live import run_store
from pages._studio.pickers import load_dataset


@st.cache_data(max_entries=32, show_spinner="Looking at the data …")
def _suited(root: str, name: str, version: int, preset: str) -> RunSpec:
    return preset_spec(preset, load_dataset(name, version))


def preset_on(preset: str, dataset: str) -> RunSpec:
    """The preset as this dataset needs it."""
    return _suited(str(workspace().root), dataset, load_dataset(dataset).version, preset)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted paths; lists stay whole."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{path}.{name}" if path else name)
    return found


def command(spec: RunSpec) -> str:
    """The command line that does the same; only fields that differ from the preset, or from the run that is gone on
    from, are named."""
    if spec.continue_from is not None:
        first = run_store().get(spec.continue_from).spec
        newer = spec.continual is not None
        again = {"kind": "train", "parent_run": None, "continue_from": spec.continue_from, "compression": None}
        start = flat(
            first.model_dump(mode="json") | again | {"continual": ContinualSpec().model_dump() if newer else None}
        )
        parts = ["llmrec", "train", "--continue" if newer else "--continue-from", spec.continue_from]
        if newer:
            start["dataset.version"] = spec.dataset.version
            if first.dataset.name != spec.dataset.name:
                parts += ["--dataset", spec.dataset.name]
                start["dataset.name"] = spec.dataset.name
    elif spec.preset in PRESETS:
        start = flat(preset_on(spec.preset, spec.dataset.name).model_dump(mode="json"))
        parts = ["llmrec", "train", "--preset", spec.preset, "--dataset", spec.dataset.name]
    else:
        return "llmrec train run.yaml"
    for path, value in flat(spec.model_dump(mode="json")).items():
        if start.get(path) != value:
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
            parts += ["--set", f"{path}={text.removesuffix('...' + chr(10)).strip()}"]
    return shlex.join(parts)
