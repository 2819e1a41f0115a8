"""Named starting points: one choice gives a whole spec, and every field of it can still be changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from llmrec_core.errors import SpecError
from llmrec_core.specs import RunSpec, parse_run_spec
from llmrec_core.specs.unread import PROMPT_READERS, READ_BY_ALL

if TYPE_CHECKING:
    from llmrec_core.data import Dataset


@dataclass(frozen=True)
class Preset:
    """``minutes``: a rough upper bound on two CPU cores with a data set like MovieLens-100K."""

    name: str
    title: str
    when: str
    needs: str
    minutes: float
    fields: Mapping[str, Any]


#: Like rates, means, neighbours and popularity beside the text, which then learns what they do not say.
_BESIDE: dict[str, Any] = {"behaviour": {}}
#: Co-visits and factors, weighed on validation users: within seconds better candidates than either finds.
_FOUND: dict[str, Any] = {"family": "pipeline", "retriever": {"family": "blend"}}
#: Parts that came with the data are kept as they are; else leave-one-out on users and items with five or more.
_FIVE_CORE = {"protocol": "auto", "min_user_interactions": 5, "min_item_interactions": 5}

#: Decoders cost many times an encoder's time: few prompts, small steps.
_DECODER = {"family": "cross-encoder", "model": "smollm2-135m"}
_FEW_STEPS = {"learning_rate": 1e-4, "validation_every": 10, "validation_samples": 128}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "quick",
            "Quick look",
            "To see the whole journey once: a small fine-tuning, a ranking and explanations within about a minute.",
            "interactions; item titles help",
            1.5,
            {
                "split": _FIVE_CORE,
                "recommender": {
                    "family": "pipeline",
                    "retriever": {"family": "item-knn", "direction": "both"},
                    "n_candidates": 10,
                    "fusion_users": 100,
                },
                "prompt": {"max_history": 6, "max_tokens": 112},
                # A list with one right item teaches more in a minute than single clicks do.
                "objectives": [{"task": "rank"}],
                "training": {
                    "max_samples": 2400,
                    "batch_size": 16,
                    "learning_rate": 1e-4,
                    "rank_candidates": 4,
                    "validation_every": 25,
                    "validation_samples": 256,
                },
                "evaluation": {"max_users": 120, "click_negatives": 2},
            },
        ),
        Preset(
            "bert-click",
            "Click prediction (encoder)",
            "The usual choice: learns who would like what from history and item text, and re-ranks what kNN finds.",
            "interactions; ratings or clicks; item titles",
            6,
            {"split": _FIVE_CORE, "recommender": {**_FOUND, "ranker": _BESIDE}, "objectives": [{"task": "click"}]},
        ),
        Preset(
            "bert-rating",
            "Rating prediction (encoder)",
            "When the question is how many stars: squared error on ratings, reported as RMSE and MAE.",
            "interactions with ratings; item titles",
            6,
            {
                "split": _FIVE_CORE,
                "recommender": {**_FOUND, "ranker": _BESIDE},
                "objectives": [{"task": "rating"}],
                "training": {"validation_metric": "rmse"},
                "evaluation": {"primary_metric": "rmse"},
            },
        ),
        Preset(
            "bert-rank",
            "Ranking (encoder)",
            "When only the order matters: softmax over a list with one right item.",
            "interactions; item titles",
            6,
            {"split": _FIVE_CORE, "recommender": {**_FOUND, "ranker": _BESIDE}, "objectives": [{"task": "rank"}]},
        ),
        Preset(
            "multitask",
            "Click, rating and rank together",
            "One shared encoder with three heads; helps when each signal alone is thin. A second stage can then go on "
            "with one of them.",
            "interactions with ratings; item titles",
            6,
            {
                "split": _FIVE_CORE,
                "recommender": {**_FOUND, "ranker": _BESIDE},
                "objectives": [
                    {"task": "click", "weight": 1.0},
                    {"task": "rating", "weight": 0.5},
                    {"task": "rank", "weight": 0.5},
                ],
            },
        ),
        Preset(
            "ratings",
            "How many stars (factors and item texts)",
            "The most exact ratings, within a minute and without prompts: who rated what and how, and item texts "
            "where few have rated; new users and items are served too.",
            "interactions with ratings; item titles help",
            1,
            {
                "split": _FIVE_CORE,
                "recommender": {"family": "ratings"},
                "baselines": [{"family": "popularity"}, {"family": "bias-knn"}],
                "evaluation": {"primary_metric": "rmse", "max_users": None},
            },
        ),
        Preset(
            "sequential",
            "What comes next (sequence over item texts)",
            "For long histories with times: a small transformer over language-model vectors ranks the whole catalogue, "
            "new items included.",
            "interactions with times; item titles",
            6,
            {"split": _FIVE_CORE, "recommender": {"family": "sequential"}, "evaluation": {"max_users": None}},
        ),
        Preset(
            "generate",
            "Write the next title (generative)",
            "When there is a decoder and recommendations should come with a text: it goes on with the list of titles a "
            "user chose, re-ranks what others find by the titles it would write, and writes about them from their "
            "fields. As a family by itself (recommender.family: generative) it finds them too, real items only.",
            "interactions; item titles",
            30,
            {
                "split": _FIVE_CORE,
                "recommender": {**_FOUND, "ranker": {"family": "generative"}, "fusion_users": 100},
                "prompt": {"template": "next", "max_history": 10},
                # Lists of one right title among eight are what validation watches.
                "objectives": [{"task": "rank"}],
                "training": {
                    "max_samples": 1600,
                    "batch_size": 8,
                    "learning_rate": 2e-4,
                    "validation_every": 25,
                    "validation_samples": 400,
                },
                "evaluation": {"max_users": 100, "click_negatives": 2},
            },
        ),
        Preset(
            "two-tower",
            "Nearest items (two towers over texts)",
            "For large or fast-changing catalogues: users and items as vectors of one model, new items ranked by their "
            "text like any other, searched exactly or through FAISS.",
            "interactions with times; item titles",
            6,
            {"split": _FIVE_CORE, "recommender": {"family": "two-tower"}, "evaluation": {"max_users": None}},
        ),
        Preset(
            "ranking",
            "Rank everything (blend)",
            "The strongest ranking of a whole catalogue, without prompts: co-visits, alike users, factors, what is on "
            "the rise and the sequence model, weighed on validation users.",
            "interactions with times; item titles help",
            6,
            {
                "split": _FIVE_CORE,
                "recommender": {
                    "family": "blend",
                    "members": [
                        {"family": "popularity"},
                        {"family": "item-knn", "direction": "both"},
                        {"family": "item-knn"},
                        {"family": "user-knn"},
                        {"family": "bpr"},
                        {"family": "trend"},
                        {"family": "sequential"},
                    ],
                },
                "evaluation": {"max_users": None},
            },
        ),
        Preset(
            "yes-no",
            "Yes or no (decoder)",
            "When items are best judged by what a language model knows of them: it is asked whether the user would "
            "like each, and the weight of its Yes against its No is trained with LoRA.",
            "interactions; ratings or clicks; item titles that say something",
            15,
            {
                "split": _FIVE_CORE,
                "recommender": {
                    **_FOUND,
                    "ranker": {**_DECODER, **_BESIDE, "head": "label-words", "tuning": {"method": "lora"}},
                    "fusion_users": 40,
                },
                "prompt": {"template": "yes-no", "max_tokens": 128, "max_history": 6},
                "objectives": [{"task": "click"}],
                "training": {**_FEW_STEPS, "max_samples": 600, "batch_size": 16},
                "evaluation": {"max_users": 60, "click_negatives": 2},
            },
        ),
        Preset(
            "listwise",
            "Choice from a list (decoder)",
            "When candidates should be weighed against each other: a language model reads the best twenty in one "
            "prompt and chooses by letter.",
            "interactions; item titles that say something",
            15,
            {
                "split": _FIVE_CORE,
                "recommender": {**_FOUND, "ranker": {"family": "listwise"}, "fusion_users": 40},
                "prompt": {"template": "choice", "max_tokens": 512, "max_history": 8},
                "objectives": [{"task": "rank"}],
                "training": {
                    **_FEW_STEPS,
                    "max_samples": 1600,
                    "batch_size": 80,
                    "rank_candidates": 20,
                    "hard_negatives": 1.0,
                    "validation_metric": "ndcg@10",
                    "validation_samples": 320,
                },
                "evaluation": {"max_users": 60, "click_negatives": 0},
            },
        ),
        Preset(
            "zero-shot",
            "Zero-shot (decoder, nothing is trained)",
            "To see what a language model knows without any training, or where there is too little data to train on.",
            "interactions; item titles that say something",
            8,
            {
                "split": _FIVE_CORE,
                "recommender": {
                    **_FOUND,
                    "ranker": {**_DECODER, "head": "label-words", "tuning": {"method": "none"}},
                    "fusion_users": 40,
                },
                "prompt": {"template": "yes-no", "max_tokens": 128, "max_history": 6},
                "objectives": [{"task": "click"}],
                "training": {"validation_samples": 64},
                "evaluation": {"max_users": 60, "click_negatives": 2},
            },
        ),
    )
}


def find_preset(name: str) -> Preset:
    """Raises: SpecError: unknown name; lists the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        raise SpecError(
            f"there is no preset {name[:80]!r}.", where="preset", fix=f"Known presets: {', '.join(PRESETS)}."
        ) from None


def preset_spec(name: str, dataset: str | Dataset, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """The preset's spec on ``dataset``, with ``overrides`` (dotted path -> value) laid over it.

    Given a :class:`Dataset` instead of its name, the preset first takes over what suits that data (filters that leave
    something, the split of instruction records); :func:`preset_reasons` says what and why. Overrides always win.

    Raises:
        SpecError: unknown preset, or a field that does not exist or does not accept the value.
    """
    spec = _plain_preset(name, dataset if isinstance(dataset, str) else dataset.name)
    if not isinstance(dataset, str):
        from llmrec_core.data.suiting import suited

        for choice in suited(spec, dataset):
            spec = override_spec(spec, choice.fields)
    return override_spec(spec, overrides or {})


def preset_reasons(spec: RunSpec, dataset: Dataset) -> list[str]:
    """Why the preset of ``spec`` is another on this data than elsewhere; only what ``spec`` still holds is told."""
    from llmrec_core.data.suiting import suited

    if spec.preset not in PRESETS:
        return []
    plain = _plain_preset(spec.preset, dataset.name)
    return [choice.why for choice in suited(plain, dataset) if override_spec(spec, choice.fields) == spec]


def _plain_preset(name: str, dataset: str) -> RunSpec:
    preset = find_preset(name)
    return parse_run_spec({**preset.fields, "preset": name, "dataset": {"name": dataset}}, where=f"preset {name}")


def override_spec(spec: RunSpec, overrides: Mapping[str, Any]) -> RunSpec:
    """``spec`` with the fields at the dotted paths replaced and everything checked again.

    A change of a ``family`` drops the fields of the old family at that place, and with a family that reads no prompts
    what ``training`` held for one that does; what ``overrides`` say of ``training`` stays, to be refused by its name.

    Raises:
        SpecError: a path that is not in the spec, or a value that its field refuses.
    """
    raw = spec.model_dump(mode="json")
    # Families first: what is set beside a new family belongs to the new one.
    for path in sorted(overrides, key=lambda p: (not p.endswith("family"), p.count("."))):
        _set_path(raw, path, overrides[path])
    family = raw["recommender"].get("family") if isinstance(raw["recommender"], dict) else None
    if family != spec.recommender.family and family not in PROMPT_READERS and isinstance(raw["training"], dict):
        for name in set(raw["training"]) - set(READ_BY_ALL):
            if "training" not in overrides and f"training.{name}" not in overrides:
                del raw["training"][name]
    return parse_run_spec(raw)


def parse_assignment(text: str) -> tuple[str, Any]:
    """``a.b=value`` -> ("a.b", value), the value read as YAML (numbers, true, null, [lists], text).

    Raises:
        SpecError: no ``=``, no path, or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SpecError(f"{text[:80]!r} is not an assignment.", where="--set", fix="Write --set field.name=value.")
    try:
        return path.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"the value of {path!r} cannot be read: {error}.", where="--set", fix="Quote it.") from None


def _set_path(raw: dict[str, Any], path: str, value: Any) -> None:
    """Lays ``value`` at ``path``. Keys that do not exist are added: the spec's own check then names them."""
    *parents, last = path.split(".")
    node: Any = raw
    for key in parents:
        node = _child(node, key, path)
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    elif last == "family" and node.get("family") != value:
        node.clear()
        node["family"] = value
    else:
        node[last] = value


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, key, path)]
    else:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
    if not isinstance(child, dict | list):
        raise SpecError(f"{key!r} holds a single value, nothing lies below it.", where=path, fix="Shorten the path.")
    return child


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise SpecError(f"{key!r} is not one of the {len(node)} entries there.", where=path, fix="Count from 0.")
    return int(key)
