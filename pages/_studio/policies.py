"""Ranking policies on the screens: sliders and rules to set them, a list with and without them, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from llmrec_core.data import Dataset
from llmrec_core.data.companions import Companions
from llmrec_core.errors import LLMRecError
from llmrec_core.evaluation.report import metric_title
from llmrec_core.figures import tradeoff_figure
from llmrec_core.presets import override_spec
from llmrec_core.runs import Run
from llmrec_core.specs import RunSpec, parse_policies
from pages._studio.base import FIGURE_TOOLS, faults_in_words, label, plain
from pages._studio.live import open_run, run_store
from pages._studio.pickers import MAX_OPTIONS, ask, item_label, load_dataset

_TITLES = {
    "novelty": "Novelty",
    "diversity": "Diversity",
    "calibration": "Calibration",
    "category-cap": "Cap on categories",
    "exposure": "Cap on exposure",
    "blocklist": "Blocklist",
}
#: Metrics of the table of costs, beside the primary one.
_SHOWN = ("ndcg", "novelty", "diversity", "miscalibration", "gini", "aplt", "coverage")
_MOST_CATEGORIES = 200


@st.cache_data(max_entries=8, show_spinner=False)
def _categories(_dataset: Dataset, fingerprint: str) -> list[str]:
    """``field=value`` for the single values of the category columns, the most frequent first."""
    companions = Companions(_dataset)
    found: dict[str, int] = {}
    for field in _dataset.category_fields:
        for item in range(_dataset.n_items):
            for value in companions.categories(item, field):
                rule = f"{field}={value}"
                found[rule] = found.get(rule, 0) + 1
    return sorted(sorted(found), key=lambda rule: -found[rule])[:_MOST_CATEGORIES]


def policy_form(dataset: Dataset, key: str, start: Sequence[Mapping[str, Any]] = (), *, batch: bool) -> list[Any]:
    """Sliders and rules; plain data for ``RunSpec.policies``, [] where nothing is set.

    Args:
        dataset: whose categories and items there are to choose from.
        key: of the widgets.
        start: policies that the form begins with.
        batch: whether the lists of many users are made together: only then an exposure cap and a target mean anything.
    """
    known: dict[str, Mapping[str, Any]] = {}
    further = []
    for policy in start:
        if policy["policy"] in known:
            further.append(dict(policy))
        else:
            known[policy["policy"]] = policy
    categories = _categories(dataset, dataset.fingerprint)
    found: list[dict[str, Any]] = []
    left, middle, right = st.columns(3, gap="medium")
    with left:
        found += _novelty(known.get("novelty", {}), key, batch)
    with middle:
        strength = _slider("Diversity", "Unlike items instead of more of the same", known, "diversity", key)
        if strength:
            found.append({"policy": "diversity", "strength": strength})
        if batch:
            share = st.slider(
                "An item in at most so many lists (%)",
                1,
                100,
                round(100 * known.get("exposure", {}).get("max_share", 1.0)),
                key=f"{key}-exposure",
                help="100: no cap. The item stays in the lists in which it stands highest",
                persist_state="session",
            )
            if share < 100:
                found.append({"policy": "exposure", "max_share": share / 100})
    with right:
        if categories:
            strength = _slider("Calibration", "The categories of the list as in the history", known, "calibration", key)
            if strength:
                found.append({"policy": "calibration", "strength": strength})
            most = st.number_input(
                "Items of one category at most",
                1,
                None,
                known.get("category-cap", {}).get("max_items"),
                key=f"{key}-cap",
                placeholder="no limit",
                persist_state="session",
            )
            if most is not None:
                found.append({"policy": "category-cap", "max_items": int(most)})
    found += _blocklist(dataset, known.get("blocklist", {}), categories, key)
    if further:
        st.caption(f"{len(further)} further caps or blocklists of this run stay as they are.")
    # What the form does not show (the field of a cap, a kind of similarity) stays as it was.
    return [{**known.get(policy["policy"], {}), **policy} for policy in found] + further


def _novelty(known: Mapping[str, Any], key: str, batch: bool) -> list[dict[str, Any]]:
    asked = known.get("raise_by")
    target = batch and st.toggle(
        "Novelty to a target",
        value=asked is not None,
        key=f"{key}-target",
        help="Finds the smallest strength that raises novelty so far, on validation users",
        persist_state="session",
    )
    if target:
        percent = st.slider(
            "Raise novelty by (%)", 0, 100, round(100 * (asked or 0.15)), key=f"{key}-raise", persist_state="session"
        )
        return [{"policy": "novelty", "strength": None, "raise_by": percent / 100}] if percent else []
    strength = st.slider(
        "Novelty",
        0.0,
        3.0,
        min(3.0, float(known.get("strength") or 0.0)),
        0.05,
        key=f"{key}-novelty",
        help="Little-known items: so many deviations of score is one bit of novelty worth; 0 changes nothing",
        persist_state="session",
    )
    return [{"policy": "novelty", "strength": strength, "raise_by": None}] if strength else []


def _slider(title: str, help_text: str, known: Mapping[str, Any], policy: str, key: str) -> float:
    value: float = st.slider(
        title,
        0.0,
        1.0,
        float(known.get(policy, {}).get("strength", 0.0)),
        0.05,
        key=f"{key}-{policy}",
        help=f"{help_text}; 0 changes nothing",
        persist_state="session",
    )
    return value


def _blocklist(dataset: Dataset, known: Mapping[str, Any], categories: list[str], key: str) -> list[dict[str, Any]]:
    left, middle, right = st.columns(3, gap="medium")
    with left:
        items = st.multiselect(
            "Never show these items",
            list(dict.fromkeys([*known.get("items", ()), *(str(i) for i in dataset.item_ids[:MAX_OPTIONS])])),
            default=list(known.get("items", ())),
            key=f"{key}-items",
            format_func=lambda item: item_label(dataset, item),
            accept_new_options=dataset.n_items > MAX_OPTIONS,
            persist_state="session",
        )
    with middle:
        rules = st.multiselect(
            "Never show items with",
            list(dict.fromkeys([*known.get("rules", ()), *categories])),
            default=list(known.get("rules", ())),
            key=f"{key}-rules",
            format_func=label,
            accept_new_options=True,
            help="field=value; any item column will do",
            persist_state="session",
        )
    with right:
        reason = st.text_input(
            "Reason code",
            known.get("reason", "blocked"),
            max_chars=80,
            key=f"{key}-reason",
            help="Reported with every item that is taken out",
            persist_state="session",
        )
    if not items and not rules:
        return []
    return [{"policy": "blocklist", "items": list(items), "rules": list(rules), "reason": reason.strip() or "blocked"}]


def policy_choice(spec: RunSpec, dataset: Dataset, key: str) -> dict[str, Any]:
    """Policies of a run that is to be started, as the change of a spec."""
    own = [policy.model_dump(mode="json") for policy in spec.policies]
    with st.expander("Ranking policies: novelty, diversity, calibration, caps, blocklist", icon=":material/balance:"):
        st.caption("They act on the finished ranking and are measured beside it: what they cost and what they gain.")
        chosen = policy_form(dataset, f"{key}-policies", own, batch=True)
    try:
        return {"policies": [policy.model_dump(mode="json") for policy in parse_policies(chosen)]}
    except LLMRecError:
        # The spec refuses it in words, where all of the form's faults are shown.
        return {"policies": chosen}


def side_by_side_part(run: Run, user: str, dataset: Dataset, k: int, history: list[dict[str, Any]] | None) -> None:
    """The model's list for one user without and with policies, each change with its reason."""
    st.subheader("With and without policies", anchor=False)
    # The result holds the strengths that the run found.
    own = run_store().result(run.run_id)["policies"]["settings"] if run.spec.policies else []
    chosen = policy_form(dataset, f"policies_{run.run_id}", own, batch=False)
    if not chosen:
        st.caption(
            "Move a slider or block something: the list changes at once. What it costs over all users is measured on "
            "Metrics."
        )
        return
    with faults_in_words():
        plain_data = [policy.model_dump(mode="json") for policy in parse_policies(chosen)]
        with st.spinner("Ranking with policies …"):
            answer = ask(
                "recommend", run_id=run.run_id, user_id=user, k=k, model="model", history=history, policies=plain_data
            )
        _side_by_side(answer, k)


def _side_by_side(answer: Mapping[str, Any], k: int) -> None:
    removed, came = answer["removed"], [item for item in answer["items"] if item["reason"]]
    for note in answer["policies"]["notes"]:
        st.caption(plain(note, 600))
    st.caption(f"{len(removed)} out, {len(came)} in, chosen from the best {answer['policies']['depth']:,} items.")
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Without policies**")
        gone = {item["item_id"] for item in removed}
        _lines([(item, "out" if item["item_id"] in gone else "") for item in answer["without"]])
    with right:
        st.markdown("**With policies**")
        _lines([(item, "in" if item["reason"] else "") for item in answer["items"]])
        if len(answer["items"]) < k:
            st.caption("The list is shorter: rules left no more candidates.")


def _lines(items: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    for item, change in items:
        with st.container(border=True, gap="xxsmall"):
            st.markdown(f"{item['rank']}\\. **{plain(item['title'] or item['item_id'], 90)}**")
            with st.container(horizontal=True, gap="xsmall", vertical_alignment="center"):
                if change:
                    st.badge(
                        change,
                        color="red" if change == "out" else "green",
                        icon=":material/remove:" if change == "out" else ":material/add:",
                    )
                words = [f"{item['score']:.3g}", f"{item['popularity']}×"]
                if item["rank_without"] != item["rank"]:
                    words.append(f"place {item['rank_without']} without policies")
                st.caption(" · ".join(words), width="content")
            if item["reason"] is not None:
                st.caption(f"{_TITLES[item['reason']['policy']]}: {plain(item['reason']['text'], 200)}")


def cost_part(run: Run, result: Mapping[str, Any]) -> None:
    """What the run's policies cost and gain, and a form that measures others on the same run without training."""
    found = result.get("policies")
    st.subheader("What policies cost", anchor=False)
    if found is None:
        st.caption("This run ranks without policies. They can be measured on it without training it again:")
    else:
        _cost(result, found)
    with st.expander("Measure policies on this run", icon=":material/balance:", expanded=False):
        dataset = load_dataset(run.spec.dataset.name, run.spec.dataset.version)
        start = (found or {}).get("settings") or [policy.model_dump(mode="json") for policy in run.spec.policies]
        chosen = policy_form(dataset, f"cost_{run.run_id}", start, batch=True)
        if st.button("Measure", key="policies_measure", icon=":material/play_arrow:", disabled=not chosen):
            with faults_in_words():
                parent = run.spec.parent_run if run.spec.kind == "evaluate" else run.run_id
                changes = {"kind": "evaluate", "parent_run": parent, "name": "with policies", "policies": chosen}
                open_run(run_store().submit(override_spec(run.spec, changes)))


def _cost(result: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    st.markdown(plain(found["sentence"], 1500))
    for note in found["notes"]:
        st.caption(plain(note, 600))
    st.dataframe(cost_table(result, found), hide_index=True, key="policy_costs")
    st.caption("In brackets: the change from the line above, with its paired interval over the same users.")
    stages = {"without policies": result["metrics"]}
    for number, step in enumerate(found["steps"], start=1):
        stages[f"{number}. {_TITLES[step['policy']['policy']]}"] = step["metrics"]
    gains = [f"{base}@{found['k']}" for base in _SHOWN[1:] if f"{base}@{found['k']}" in found["metrics"]]
    if gains:
        x = st.selectbox("Against", gains, key="policy_tradeoff_x", format_func=metric_title)
        figure = tradeoff_figure(stages, x, f"ndcg@{found['k']}")
        st.plotly_chart(figure, key="policy_tradeoff", config=FIGURE_TOOLS)


def cost_table(result: Mapping[str, Any], found: Mapping[str, Any]) -> pd.DataFrame:
    """One line without policies, one after each; cells are values with the change and its interval."""
    names = [f"{base}@{found['k']}" for base in _SHOWN]
    names = [name for name in names if name in found["metrics"]]
    first = {metric_title(name): _cell(result["metrics"].get(name), None) for name in names}
    rows = [{"policy": "without", "setting": "", **first}]
    for step in found["steps"]:
        setting = {k: v for k, v in step["policy"].items() if k != "policy" and v not in (None, [], "")}
        cells = {metric_title(name): _cell(step["metrics"].get(name), step["cost"].get(name)) for name in names}
        words = ", ".join(
            f"{k.replace('_', ' ')} {format(v, '.4g') if isinstance(v, float) else v}" for k, v in setting.items()
        )
        rows.append({"policy": f"+ {_TITLES[step['policy']['policy']]}", "setting": label(words, 120), **cells})
    return pd.DataFrame(rows)


def _cell(value: Mapping[str, Any] | None, cost: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "–"
    if cost is None or cost["mean"] is None:
        return f"{value['mean']:.4f}"
    ends = "" if cost["ci_low"] is None else f"; {cost['ci_low']:+.4f} to {cost['ci_high']:+.4f}"
    return f"{value['mean']:.4f} ({cost['mean']:+.4f}{ends})"
