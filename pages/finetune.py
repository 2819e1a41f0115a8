"""Fine-tune: collect a spec, submit it, watch it; the queue and all runs below."""

from __future__ import annotations

import secrets
from typing import Any, get_args

import pandas as pd
import streamlit as st
import yaml

from llmrec_core.data import DatasetStore
from llmrec_core.errors import LLMRecError, SpecError
from llmrec_core.presets import PRESETS, override_spec, preset_reasons, preset_spec
from llmrec_core.prompts import STARTERS, TemplateStore
from llmrec_core.specs import (
    TUNING_METHODS,
    BlendSpec,
    CrossEncoderSpec,
    GenerativeSpec,
    MemberSpec,
    PipelineSpec,
    PromptSpec,
    RunSpec,
    Spec,
    TrainingSpec,
    TuningMethod,
    TuningSpec,
    TwoTowerSpec,
    ranker_of,
)
from llmrec_core.specs.continuing import is_tuned
from llmrec_core.specs.titles import FAMILY_TITLES
from llmrec_core.specs.unread import EMBEDDINGS_STAY, SOFTENED, STORED, unread_training
from pages._studio.base import (
    empty_state,
    faults_in_words,
    header,
    linked_choice,
    plain,
    remember,
    remembered,
    show_error,
    workspace,
)
from pages._studio.commands import command, flat, preset_on
from pages._studio.going_on import kept_shape, newer_data, replay_choice, second_stage
from pages._studio.live import live_panel, open_run, outcome, run_line, run_store, run_title
from pages._studio.memory import memory_choice
from pages._studio.pickers import load_dataset
from pages._studio.policies import policy_choice
from pages._studio.reader import LEARNS, OF_TRAINING, check_model, model_card, ranker_path
from pages._studio.spec_form import FormField, edit_field, form_fields
from pages._studio.splits import linked_split, split_form
from pages._studio.tricks import trick_choice

_TASKS = {"click": "Clicks", "rating": "Ratings", "rank": "The right order", "similarity": "What goes together"}
#: Fields of a family that most people look at; the others stand under Expert.
_FAMILY_TITLES = {
    "epochs": "Epochs at most",
    "max_history": "Longest history",
    "learning_rate": "Learning rate",
    "batch_size": "Batch size",
    "item_fields": "Item fields that are read",
    "validation_users": "Validation users",
}
_RUN_TITLES = {"evaluation.max_users": "Test users", "device": "Device", "name": "Name of the run"}
#: What stands in the open of families that read prompts.
_NUMBERS = {
    "training.max_samples": "Training prompts",
    "training.epochs": "Epochs",
    "training.batch_size": "Batch size",
    "training.learning_rate": "Learning rate",
    "evaluation.max_users": "Test users",
    "training.precision": "Precision",
    "device": "Device",
    "name": "Name of the run",
}
_METHODS: dict[TuningMethod, str] = {
    "full": "Full: all layers",
    "top-layers": "Only the top layers",
    "lora": "LoRA adapters",
    "adalora": "AdaLoRA",
    "ia3": "IA3 factors",
    "prefix": "Prefix",
    "prompt": "Soft prompt",
    "bottleneck": "Bottleneck adapters",
    "none": "None: zero-shot",
}
#: Fields of each way of tuning; the first stands in the open.
_METHOD_FIELDS: dict[str, tuple[str, ...]] = {
    "top-layers": ("n_top_layers",),
    "lora": ("lora_rank", "lora_targets", "lora_alpha", "lora_dropout"),
    "adalora": ("lora_rank", "lora_targets", "lora_alpha", "lora_dropout"),
    "prefix": ("n_virtual_tokens",),
    "prompt": ("n_virtual_tokens",),
    "bottleneck": ("bottleneck_width", "bottleneck_places"),
}


def start_point() -> RunSpec | None:
    """The spec that the form starts from: a cloned run, or a preset on a dataset."""
    cloned = st.session_state.get("clone_of")
    datasets = [meta.name for meta in DatasetStore(workspace()).list()]
    left, middle = st.columns(2)
    with left:
        dataset = linked_choice("Dataset", datasets, param="dataset", key="ft_dataset", kind="dataset")
    if dataset is None:
        return None
    if cloned:
        run = run_store().get(cloned)
        second = st.session_state.get("second_stage") == cloned
        newer = second and st.session_state.get("continual") == cloned
        raw = run.spec.model_dump(mode="json") | {"parent_run": None, "kind": "train", "compression": None}
        raw["dataset"] = {"name": dataset, "version": None}
        with middle:
            if second:
                changed = newer_data(run, dataset) if newer else second_stage(run)
            else:
                st.info(f"Starts from {plain(run_title(run))}", icon=":material/content_copy:")
                changed = {}
            if st.button("Use a preset instead", key="clone_drop"):
                for name in ("clone_of", "second_stage", "continual"):
                    st.session_state.pop(name, None)
                st.rerun()
        if changed is None:
            return None
        raw |= changed
        # What has no effect is found out below, where it is said in words.
        return RunSpec.model_validate(raw, context=STORED)
    with middle:
        name = st.selectbox(
            "Preset",
            list(PRESETS),
            key="ft_preset",
            format_func=lambda p: PRESETS[p].title,
            index=list(PRESETS).index("bert-click") if "bert-click" in PRESETS else 0,
            persist_state="session",
        )
    preset = PRESETS[name]
    unit = "minute" if preset.minutes == 1 else "minutes"
    st.caption(f"{preset.when} Needs: {preset.needs}. Up to {preset.minutes:g} {unit} on two processor cores.")
    return preset_on(name, dataset)


@st.cache_data(max_entries=32, show_spinner=False)
def _reasons(root: str, name: str, version: int, spec_json: str) -> list[str]:
    return preset_reasons(RunSpec.model_validate_json(spec_json), load_dataset(name, version))


def what_was_chosen(spec: RunSpec) -> None:
    """What the preset took over from the data, and why, as far as the form still says so."""
    dataset = load_dataset(spec.dataset.name, spec.dataset.version)
    reasons = _reasons(str(workspace().root), dataset.name, dataset.version, spec.model_dump_json())
    if reasons:
        lines = "\n".join(f"- {plain(reason, 600)}" for reason in reasons)
        st.info(f"**Chosen for this data.** Every field can still be changed.\n\n{lines}", icon=":material/tune:")


def prompt_choice(spec: RunSpec, key: str) -> dict[str, Any]:
    store = TemplateStore(workspace())
    options = [t.name for t in store.list()]
    if spec.prompt.template not in options:
        options.append(spec.prompt.template)
    kept = remembered("template")
    # A template that the preset chose for this data, or that a cloned run had, is not put aside.
    own = spec.prompt.template != PromptSpec().template
    start = kept if kept in options and not own else spec.prompt.template
    chosen = st.selectbox(
        "Prompt template",
        options,
        index=options.index(start),
        key=f"{key}-template",
        format_func=lambda n: f"{STARTERS[n].title} (starter)" if n in STARTERS else n,
        persist_state="session",
    )
    remember("template", chosen)
    st.page_link("pages/prompts.py", label="Edit prompts", icon=":material/edit_note:")
    if chosen in STARTERS:
        return {"prompt.template": chosen, "prompt.source": None}
    # A run keeps the text itself, so that later versions of the template do not change what it was.
    cloned = spec.prompt.source if chosen == spec.prompt.template else None
    return {"prompt.template": chosen, "prompt.source": cloned or store.get(chosen)}


def objectives(spec: RunSpec, key: str) -> list[dict[str, Any]]:
    weights: dict[str, float] = {o.task: o.weight for o in spec.objectives}
    chosen = st.pills(
        "Learn to predict",
        list(_TASKS),
        selection_mode="multi",
        default=list(weights),
        format_func=_TASKS.__getitem__,
        key=f"{key}-tasks",
        help="Clicks: who would like it. Ratings: how many stars. The right order: one good item above others. What "
        "goes together: how often the candidate comes with the history. Several are trained together, as a weighted "
        "sum of their losses.",
        wrap=True,
        persist_state="session",
    )
    if not chosen:
        return []
    if len(chosen) == 1:
        return [{"task": chosen[0], "weight": weights.get(chosen[0], 1.0)}]
    columns = st.columns(len(chosen))
    found = []
    for column, task in zip(columns, chosen, strict=True):
        with column:
            weight = st.number_input(
                f"Weight: {_TASKS[task].lower()}",
                min_value=0.01,
                value=float(weights.get(task, 1.0)),
                step=0.1,
                format="%g",
                key=f"{key}-weight-{task}",
                persist_state="session",
            )
        found.append({"task": task, "weight": weight})
    return found


def field(fields: dict[str, FormField], path: str, key: str, title: str, changes: dict[str, Any]) -> None:
    """One main option; remembers it in ``changes`` under its path."""
    if path in fields:
        changes[path] = edit_field(fields.pop(path), f"{key}-{path}", title)


def in_rows(fields: dict[str, FormField], shown: dict[str, str], key: str, changes: dict[str, Any]) -> None:
    """Fields four to a row, so that a narrow screen has them in their order too."""
    here = [(path, title) for path, title in shown.items() if path in fields]
    for start in range(0, len(here), 4):
        for column, (path, title) in zip(st.columns(4), here[start : start + 4], strict=False):
            with column:
                field(fields, path, key, title, changes)


def reads_prompts(spec: RunSpec) -> bool:
    """Whether a language model reads prompts; other families have no use for prompt, objectives and training."""
    return isinstance(spec.recommender, CrossEncoderSpec | GenerativeSpec | PipelineSpec)


def family_options(spec: RunSpec, key: str, fields: dict[str, FormField]) -> dict[str, Any]:
    """The options of a family whose text is no training prompt: the most used of its own, and what every run has."""
    unread = unread_training(spec.recommender)
    changes = _at_defaults({f"training.{name}": getattr(spec.training, name) for name in unread}, TrainingSpec)
    for name in unread:
        fields.pop(f"training.{name}", None)
    if spec.continue_from is not None:
        kept_shape(spec, fields)
        replay_choice(fields, key, changes)
    else:
        changes |= model_card(spec, key)
        fields.pop("recommender.model", None)
        if isinstance(spec.recommender, BlendSpec):
            changes |= blend_members(spec.recommender, key)
    user = None
    if isinstance(spec.recommender, TwoTowerSpec):
        field(fields, "recommender.user", key, "What stands for a user", changes)
        user = changes.get("recommender.user", spec.recommender.user)
        tower_tuning(spec.recommender, key, fields, changes, newer=spec.continual is not None)
    if user == "prompt":
        changes |= prompt_choice(spec, key)
        fields.pop("prompt.template", None)
    else:
        for path in [path for path in fields if path.startswith("prompt.")]:
            del fields[path]
    fields.pop("recommender.weights", None)
    own = {f"recommender.{name}": title for name, title in _FAMILY_TITLES.items()}
    in_rows(fields, own | _RUN_TITLES, key, changes)
    return changes | {"objectives": [o.model_dump(mode="json") for o in spec.objectives]}


def _at_defaults(values: dict[str, Any], of: type[Spec]) -> dict[str, Any]:
    """Changes that put back to its default what nothing reads: a form cannot show it, and a spec refuses it."""
    found = {}
    for path, value in values.items():
        default = of.model_fields[path.rpartition(".")[2]].default
        if value != default:
            found[path] = default
    return found


def tower_tuning(
    towers: TwoTowerSpec, key: str, fields: dict[str, FormField], changes: dict[str, Any], *, newer: bool
) -> None:
    """How the language model of two towers is tuned, where any steps are spent on that.

    Args:
        newer: they go on with newer data: what was tuned before goes on as it was, or stays.
    """
    steps = "recommender.tuning_steps"
    field(fields, steps, key, "Steps with the language model", changes)
    wanted = changes.get(steps, towers.tuning_steps)
    if newer and is_tuned(towers):
        what = "its weights are tuned further" if wanted else "its weights stay as that run left them"
        st.caption(f"{TUNING_METHODS[towers.tuning.method]} The first run tuned the language model so: {what}.")
        if not wanted:
            for name in ("tuning_texts", "tuning_rate"):
                fields.pop(f"recommender.{name}", None)
        return
    if wanted:
        tuning_method(
            "recommender.tuning",
            towers.tuning.method,
            key,
            fields,
            changes,
            leave_out=("adalora", "none"),
            known=towers,
        )
        return
    st.caption(
        "While these steps are 0 the language model stays as it came, and nothing of it is tuned. Set them above 0, "
        "for example 300, to choose which of its weights are trained."
    )
    without_tuning("recommender", towers, fields, changes)


def without_tuning(path: str, towers: TwoTowerSpec, fields: dict[str, FormField], changes: dict[str, Any]) -> None:
    """Takes out of ``fields`` what has no effect on two towers that tune nothing."""
    names = [f"{path}.tuning_texts", f"{path}.tuning_rate"]
    for found in [p for p in fields if p.startswith(f"{path}.tuning.") or p in names]:
        del fields[found]
    changes |= _at_defaults(
        {f"{path}.tuning.{name}": getattr(towers.tuning, name) for name in TuningSpec.model_fields}, TuningSpec
    )


def blend_members(blend: BlendSpec, key: str) -> dict[str, Any]:
    """Which families are blended: with all members that the preset has of them, or one with its defaults."""
    known: dict[str, list[Any]] = {}
    for member in blend.members:
        known.setdefault(member.family, []).append(member.model_dump(mode="json"))
    families = [get_args(cls.model_fields["family"].annotation)[0] for cls in get_args(get_args(MemberSpec)[0])]
    chosen = st.pills(
        "Recommenders that are blended",
        families,
        selection_mode="multi",
        default=list(known),
        format_func=lambda family: FAMILY_TITLES.get(family, family),
        key=f"{key}-members",
        help="Each is fitted; what each weighs is chosen on validation users",
        wrap=True,
        persist_state="session",
    )
    # An empty choice is refused by the spec, in words.
    return {"recommender.members": [m for family in chosen for m in known.get(family, [{"family": family}])]}


def what_is_trained(spec: RunSpec, key: str, fields: dict[str, FormField], changes: dict[str, Any]) -> TuningMethod:
    """Which model and which of its weights; returns the way of tuning."""
    changes |= model_card(spec, key)
    fields.pop(f"{ranker_path(spec)}.model", None)
    part = ranker_of(spec.recommender)
    return tuning_method(f"{ranker_path(spec)}.tuning", part.tuning.method, key, fields, changes, known=part)


def tuning_method(
    tuning: str,
    method: TuningMethod,
    key: str,
    fields: dict[str, FormField],
    changes: dict[str, Any],
    *,
    known: Any,
    leave_out: tuple[TuningMethod, ...] = (),
) -> TuningMethod:
    """The way of tuning with its line on when to take it, and its own fields alone; returns it.

    Args:
        tuning: dotted path of the tuning. method: the one that the spec has.
        known: the spec that the tuning belongs to. leave_out: ways that it does not have.
    """
    method_field = fields.pop(f"{tuning}.method", None)
    if method_field is not None:
        method = st.segmented_control(
            "Which weights are trained",
            [name for name in _METHODS if name not in leave_out],
            default=method_field.value,
            required=True,
            format_func=_METHODS.__getitem__,
            key=f"{key}-method",
            help=method_field.help,
            wrap=True,
            persist_state="session",
        )
        changes[f"{tuning}.method"] = method
        st.caption(TUNING_METHODS[method])
        for name in _METHOD_FIELDS.get(method, ())[:1]:
            if f"{tuning}.{name}" in fields:
                field(fields, f"{tuning}.{name}", key, fields[f"{tuning}.{name}"].title, changes)
    # What belongs to another way of tuning has no effect.
    for name in {name for names in _METHOD_FIELDS.values() for name in names} - {*_METHOD_FIELDS.get(method, ())}:
        fields.pop(f"{tuning}.{name}", None)
    if method in EMBEDDINGS_STAY or isinstance(known, GenerativeSpec):
        fields.pop(f"{tuning}.freeze_embeddings", None)
        changes |= _at_defaults({f"{tuning}.freeze_embeddings": known.tuning.freeze_embeddings}, TuningSpec)
    chosen: TuningMethod = method
    return chosen


def main_options(spec: RunSpec, key: str, fields: dict[str, FormField]) -> dict[str, Any]:
    if not reads_prompts(spec):
        return family_options(spec, key, fields)
    changes: dict[str, Any] = {}
    method = ranker_of(spec.recommender).tuning.method
    left, right = st.columns(2, gap="large")
    with left:
        if spec.continue_from is not None:
            kept_shape(spec, fields)
            st.caption(TUNING_METHODS[method])
        else:
            method = what_is_trained(spec, key, fields, changes)
    with right:
        changes |= prompt_choice(spec, key)
        fields.pop("prompt.template", None)
        if ranker_of(spec.recommender).family in LEARNS:
            st.caption(LEARNS[ranker_of(spec.recommender).family])
            chosen = [o.model_dump(mode="json") for o in spec.objectives]
        else:
            chosen = objectives(spec, key)
    if method == "none":
        for name in OF_TRAINING:
            fields.pop(f"training.{name}", None)
    replay_choice(fields, key, changes)
    in_rows(fields, _NUMBERS, key, changes)
    if len(chosen) > 1:
        field(fields, "training.balance", key, "How the weights are found", changes)
    changes |= behaviour_choice(spec, key, fields)
    if method != "none":
        written = isinstance(ranker_of(spec.recommender), GenerativeSpec)
        changes |= trick_choice(spec, key, fields, SOFTENED if written else [o["task"] for o in chosen])
        changes |= memory_choice(spec, method, key, fields)
    retriever = spec.recommender.retriever if isinstance(spec.recommender, PipelineSpec) else None
    if isinstance(retriever, TwoTowerSpec):
        steps = "recommender.retriever.tuning_steps"
        # Its own field stands under Expert, below.
        kept = spec.continual is not None and is_tuned(retriever)
        if not kept and not st.session_state.get(f"{key}-{steps}", retriever.tuning_steps):
            without_tuning("recommender.retriever", retriever, fields, changes)
    return changes | {"objectives": chosen}


def behaviour_choice(spec: RunSpec, key: str, fields: dict[str, FormField]) -> dict[str, Any]:
    """Whether numbers stand beside the text; their settings are under Expert once they do."""
    path = ranker_path(spec)
    part = ranker_of(spec.recommender)
    if not isinstance(part, CrossEncoderSpec):
        return {}
    wanted = st.toggle(
        "Behaviour beside the text",
        value=part.behaviour is not None,
        key=f"{key}-behaviour",
        help="Like rates, means, neighbours, popularity and age of user and item; the text then learns what they do "
        "not say",
        persist_state="session",
    )
    if wanted == (part.behaviour is not None):
        return {}
    for name in [name for name in fields if name.startswith(f"{path}.behaviour")]:
        del fields[name]
    return {f"{path}.behaviour": {} if wanted else None}


def expert(fields: dict[str, FormField], key: str) -> dict[str, Any]:
    """Every other field of the spec, by section."""
    changes = {}
    with st.expander("Expert: every field of the spec", icon=":material/tune:"):
        sections: dict[str, list[FormField]] = {}
        for found in fields.values():
            sections.setdefault(found.section, []).append(found)
        for tab, (_, members) in zip(st.tabs(list(sections)), sections.items(), strict=True):
            with tab:
                columns = st.columns(3)
                for place, member in enumerate(members):
                    with columns[place % 3]:
                        changes[member.path] = edit_field(member, f"{key}-{member.path}")
    return changes


def new_run() -> None:
    """The form. One request key per form: a double click is one run."""
    spec = start_point()
    if spec is None:
        return
    origin = st.session_state.get("clone_of") or spec.preset
    linked = linked_split()
    if linked is not None:
        spec = spec.model_copy(update={"split": linked})
        with st.container(horizontal=True, vertical_alignment="center"):
            st.info("The split comes from the Data screen.", icon=":material/call_split:")
            if st.button("Use the preset's own split", key="split_drop"):
                st.query_params.pop("split")
                st.rerun()
    # Widgets keep what they were told under their key: another split is another form.
    key = f"ft-{origin}" if linked is None else f"ft-{origin}-{st.query_params['split']}"
    if spec.continue_from is not None:
        key = f"{key}-{'second' if spec.continual is None else 'newer'}"
    if spec.preset in PRESETS and spec != preset_spec(spec.preset, spec.dataset.name):
        # What was chosen for other data must not stay in the form.
        key = f"{key}-{spec.dataset.name}"
    told = st.container()
    fields = {f.path: f for f in form_fields(spec)}
    changes = main_options(spec, key, fields)
    changes |= split_form(spec.split, load_dataset(spec.dataset.name, spec.dataset.version), key, fields)
    changes |= policy_choice(spec, load_dataset(spec.dataset.name, spec.dataset.version), key)
    changes |= expert(fields, key)
    chosen = changes.pop("objectives")
    final: RunSpec | None = None
    try:
        if not chosen:
            raise SpecError(
                "nothing to learn is chosen.", where="Learn to predict", fix="Choose at least one objective."
            )
        start = flat(spec.model_dump(mode="json"))
        changed = {p: v for p, v in changes.items() if start.get(p) != v}
        if chosen != [o.model_dump(mode="json") for o in spec.objectives]:
            changed["objectives"] = chosen
        made = override_spec(spec, changed)
        check_model(made)
        final = made
        with told:
            what_was_chosen(final)
    except LLMRecError as error:
        show_error(error)
    request = st.session_state.setdefault("ft_request", secrets.token_hex(8))
    if (
        st.button(
            "Start fine-tuning", key="ft_submit", type="primary", icon=":material/play_arrow:", disabled=final is None
        )
        and final is not None
    ):
        with faults_in_words():
            run_id = run_store().submit(final, request_key=f"form-{request}")
            st.session_state["ft_request"] = secrets.token_hex(8)
            st.session_state.pop("clone_of", None)
            open_run(run_id)
    if final is not None:
        with st.expander("This run as a file and as a command", icon=":material/terminal:"):
            text = yaml.safe_dump(final.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            st.code(command(final), language="bash", wrap_lines=True)
            st.download_button("Download run.yaml", text, "run.yaml", "text/yaml", key="ft_yaml", on_click="ignore")
            st.code(text, language="yaml", height=320)


def one_run(run_id: str) -> None:
    """The panel of the run in ``?run=``."""
    if st.button("New run", key="ft_new", icon=":material/add:"):
        st.query_params.pop("run", None)
        st.rerun()
    try:
        run = run_store().get(run_id)
    except LLMRecError as error:
        show_error(error)
        return
    if run.status.state == "done" and run.spec.kind == "train":
        outcome(run_id)
    live_panel(run_id)
    with st.expander("Settings of this run", icon=":material/description:"):
        st.code(
            yaml.safe_dump(run.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            language="yaml",
            height=320,
        )


def all_runs() -> None:
    runs = run_store().list()
    if not runs:
        return
    st.subheader("Queue and runs", anchor=False)
    table = pd.DataFrame([run_line(run) for run in runs])
    shown = st.dataframe(
        table,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"runs_table_{len(runs)}_{st.query_params.get('run', '')}",
    )
    rows = shown.selection.rows if hasattr(shown, "selection") else []
    if rows and runs[rows[0]].run_id != st.query_params.get("run"):
        st.query_params["run"] = runs[rows[0]].run_id
        st.rerun()
    st.caption("Tick a row to open that run.")


header("Fine-tune", "Choose data, model and prompt, start, and watch it learn. Closing the tab does not stop a run.")
with faults_in_words():
    if st.session_state.get("clone_of"):
        st.query_params.pop("run", None)
    linked = st.query_params.get("run")
    if linked:
        one_run(linked)
    elif not DatasetStore(workspace()).list():
        empty_state(
            "**No data to learn from yet.** Import a dataset first, or let Home prepare the sample data.",
            ("pages/data.py", "Data", ":material/table_chart:"),
            ("pages/home.py", "Home", ":material/home:"),
        )
    else:
        new_run()
    all_runs()
