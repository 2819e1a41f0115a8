"""Prompts: the template on the left, what a model reads for a real user on the right, versions below."""

from __future__ import annotations

import streamlit as st

from llmrec_core.data import Dataset, DatasetStore
from llmrec_core.errors import LLMRecError
from llmrec_core.models.catalogue import list_models
from llmrec_core.prompts import (
    STARTERS,
    VARIABLES,
    PromptRenderer,
    TemplateStore,
    TokenCounter,
    WhitespaceCounter,
    check_template,
)
from llmrec_core.prompts.tokens import Counter
from llmrec_core.specs import PromptSpec, SplitSpec
from pages._studio.base import (
    empty_state,
    faults_in_words,
    header,
    label,
    linked_choice,
    plain,
    remember,
    show_error,
    workspace,
)
from pages._studio.pickers import MAX_OPTIONS, item_label, load_dataset, load_split, pick_user
from pages._studio.words import legend_html, spans_html

_HELP = {
    "history": "past items, oldest first; each has `title`, `fields`, `rating`, `time`",
    "liked": "history rated above the middle of the scale",
    "disliked": "history rated below it",
    "neutral": "history without a rating",
    "profile": "what is known of the user: `profile.items()`",
    "context": "the situation: `context.items()`",
    "candidate": "the item asked about: `title`, `fields`, `named`",
    "candidates": "a list of items, where a list is ranked; each has `letter` too",
    "n_history": "how many past items are offered",
}


@st.cache_resource(max_entries=4, show_spinner=False)
def _counter(folder: str) -> TokenCounter:
    return TokenCounter.from_folder(folder)


def counter() -> tuple[Counter, str]:
    """Counts tokens as a model on disk would; (counter, its name in words)."""
    ready = {e.name: e for e in list_models(workspace()) if e.on_disk and e.folder is not None}
    if not ready:
        return WhitespaceCounter(), "words, as no model is on disk yet"
    name = st.selectbox("Tokens as counted by", list(ready), key="prompt_model", format_func=lambda n: ready[n].title)
    return _counter(str(ready[name].folder)), f"tokens of {ready[name].title}"


def choose_template(store: TemplateStore) -> str:
    saved = [t.name for t in store.list() if not t.starter]
    options = [*STARTERS, *saved]
    name = linked_choice(
        "Template",
        options,
        param="template",
        key="prompt_template",
        format_func=lambda n: f"{STARTERS[n].title} (starter)" if n in STARTERS else n,
        kind="template",
    )
    assert name is not None
    return name


def versions(store: TemplateStore, name: str) -> None:
    """Older versions, what changed, and taking one back into the editor."""
    if name in STARTERS:
        return
    known = list(store.versions(name))
    with st.expander(f"Versions ({len(known)})", icon=":material/history:"):
        numbers = [v.version for v in known][::-1]
        left, right = st.columns(2)
        old = left.selectbox("From", numbers, index=min(1, len(numbers) - 1), key=f"diff_old_{name}_{len(known)}")
        new = right.selectbox("To", numbers, key=f"diff_new_{name}_{len(known)}")
        changes = store.diff(name, old, new)
        if changes:
            st.code(changes, language="diff", wrap_lines=True)
        else:
            st.caption("These two are the same.")
        with st.container(horizontal=True):
            if st.button("Edit the one on the left", key="version_edit", icon=":material/undo:"):
                st.session_state["prompt_next_source"] = next(v.source for v in known if v.version == old)
                st.rerun()
            with st.popover("Delete template", icon=":material/delete:"):
                st.write("Removes all versions. Runs keep the text that they were trained with.")
                if st.button("Delete all versions", key="template_delete", type="primary"):
                    with faults_in_words():
                        store.delete(name)
                        st.session_state.pop("prompt_template", None)
                        st.query_params.pop("template", None)
                        st.rerun()


def editor(store: TemplateStore, name: str) -> tuple[str, bool]:
    """(the source as it stands in the editor, whether it is sound)."""
    # Another template, or a version taken back, replaces the text; typing goes on otherwise.
    incoming = st.session_state.pop("prompt_next_source", None)
    if incoming is not None or st.session_state.get("prompt_editing") != name:
        st.session_state["prompt_source"] = incoming if incoming is not None else store.get(name)
        st.session_state["prompt_editing"] = name
    elif "prompt_source" not in st.session_state:
        st.session_state["prompt_source"] = st.session_state.get("kept:prompt_source") or store.get(name)
    if name in STARTERS:
        st.caption(plain(STARTERS[name].description))
    source = st.text_area("Jinja2 template", key="prompt_source", height=340, max_chars=20_000) or ""
    remember("prompt_source", source)
    with st.popover("What a template may read", icon=":material/help:"):
        st.markdown("\n".join(f"- `{v}`: {_HELP.get(v, '')}" for v in VARIABLES))
    try:
        check_template(source)
    except LLMRecError as error:
        show_error(error)
        return source, False
    return source, True


def save(store: TemplateStore, name: str, source: str, sound: bool) -> None:
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    target = left.text_input(
        "Save as",
        value="" if name in STARTERS else name,
        placeholder="my-template",
        key=f"prompt_name_{name}",
        help="A name that exists gets a new version",
    )
    if right.button(
        "Save as new version",
        key="prompt_save",
        type="primary",
        icon=":material/save:",
        disabled=not (sound and target),
        width="stretch",
    ):
        with faults_in_words():
            store.save(target, source)
            remember("template", target)
            st.session_state["prompt_editing"] = target
            st.session_state.pop("prompt_template", None)
            st.query_params["template"] = target
            st.toast("Saved.")
            st.rerun()


def options(dataset: Dataset, name: str, source: str) -> PromptSpec:
    with st.expander("What the template is offered", icon=":material/tune:"):
        left, right = st.columns(2)
        fields = [f for f in dataset.meta.item_fields if f != "title"]
        usual = PromptSpec()
        return PromptSpec(
            template=name,
            source=source,
            max_tokens=left.slider(
                "Token budget", 16, 512, usual.max_tokens, key="prompt_tokens", persist_state="session"
            ),
            max_history=right.slider(
                "History items offered", 0, 50, usual.max_history, key="prompt_history", persist_state="session"
            ),
            item_fields=tuple(
                left.multiselect("Item fields", fields, default=list(dataset.category_fields), key="prompt_item_fields")
            ),
            profile_fields=tuple(
                right.multiselect("Profile fields", list(dataset.meta.user_fields), key="prompt_profile_fields")
            ),
            show_ratings=left.toggle("Show ratings", value=True, key="prompt_ratings", persist_state="session"),
            show_time=right.toggle("Show times", value=False, key="prompt_time", persist_state="session"),
        )


def preview(name: str, source: str, sound: bool) -> None:
    names = [meta.name for meta in DatasetStore(workspace()).list()]
    if not names:
        empty_state(
            "**A preview needs data.** Import a dataset to see this template on a real user.",
            ("pages/data.py", "Data", ":material/table_chart:"),
            ("pages/home.py", "Home", ":material/home:"),
        )
        return
    left, right = st.columns(2)
    with left:
        chosen = linked_choice("Dataset", names, param="dataset", key="prompt_dataset", kind="dataset")
    if chosen is None:
        return
    dataset = load_dataset(chosen)
    with right:
        user = pick_user("prompts", dataset)
    if user is None:
        return
    query = load_split(dataset, SplitSpec()).query(user, "test")
    items = [str(i) for i in dataset.item_ids[:MAX_OPTIONS]]
    with left:
        item = st.selectbox("Candidate", items, key="prompt_item", format_func=lambda i: item_label(dataset, i))
    with right:
        counts, counted = counter()
    spec = options(dataset, name, source)
    if not sound:
        st.info("The preview comes back when the template is sound.", icon=":material/pause:")
        return
    renderer = PromptRenderer(spec, dataset, counts, source)
    prompt = renderer.render(query, dataset.item_idx(item))
    st.html(legend_html(list(dict.fromkeys(s.kind for s in prompt.spans))))
    st.html(
        spans_html(prompt.text, [{"start": s.start, "end": s.end, "kind": s.kind, "ref": s.ref} for s in prompt.spans])
    )
    columns = st.columns(3)
    columns[0].metric("Length", f"{prompt.n_tokens} of {spec.max_tokens}", help=f"Counted in {counted}")
    columns[1].metric("History shown", sum(1 for s in {s.ref for s in prompt.spans if s.kind == "history"}))
    columns[2].metric("Fell off", prompt.dropped_history, help="Oldest history items that did not fit")
    if not counts.exact:
        st.caption("No model is on disk, so words are counted instead of tokens; a model will count more.")
    if prompt.dropped_history:
        offered = query.history[-spec.max_history :] if spec.max_history else ()
        gone = [label(item_label(dataset, h.item_id), 60) for h in offered[: prompt.dropped_history]]
        st.caption(f"Did not fit, oldest first: {plain(', '.join(gone), 600)}")
        if room := renderer.candidate_room:
            st.caption(
                f"{room} tokens are kept for the candidate, however short it is, so that short and long ones are "
                "judged by the same history."
            )
    if prompt.clipped_fields:
        st.caption(f"Cut short: {plain(', '.join(prompt.clipped_fields))}")


def screen() -> None:
    store = TemplateStore(workspace())
    left, right = st.columns([1, 1], gap="large")
    with left:
        name = choose_template(store)
        source, sound = editor(store, name)
        save(store, name, source, sound)
        versions(store, name)
    with right, faults_in_words():
        preview(name, source, sound)


header("Prompts", "How a user's past and a candidate become the text that the model reads.")
with faults_in_words():
    screen()
