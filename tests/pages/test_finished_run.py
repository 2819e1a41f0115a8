"""The screens on sample data with a finished run of a light recommender: every control does something."""

from __future__ import annotations

import shutil

import pytest
import yaml
from page_helpers import open_page, texts

from llmrec_core.errors import InputError
from llmrec_core.feedback import FeedbackStore
from llmrec_core.runs import RunStore
from llmrec_core.specs import parse_run_spec
from llmrec_core.specs.titles import SHORT_FAMILY_TITLES
from llmrec_core.workspace import Workspace


@pytest.mark.parametrize(
    "page", ["home", "data", "prompts", "finetune", "rankings", "metrics", "explain", "compress", "settings"]
)
def test_shows_without_a_fault_and_escapes_the_run_name(studio, page):
    app = studio(page)
    assert not app.exception
    assert not app.error
    # The run is called "light <b>run</b>": wherever Markdown shows it, its brackets are escaped.
    assert "<b>" not in texts(app).replace("\\<b\\>", "")


def test_rankings_follow_an_edited_history(studio, finished_workspace):
    app = studio("rankings", user="u002")
    assert app.selectbox(key="rankings_user").value == "u002"
    before = [m.value for m in app.markdown]
    assert any("Popularity" in text for text in before)
    newest_first = app.dataframe[0].value
    assert newest_first["when"].is_monotonic_decreasing
    app.selectbox(key="whatif_item").select("f001").run()
    app.button(key="whatif_add").click().run()
    assert not app.exception
    assert "what\\-if" in texts(app) or "what-if" in texts(app)
    app.button(key="whatif_reset").click().run()
    assert "what-if" not in texts(app)


def test_items_like_another_are_shown_where_there_are_vectors(studio):
    app = studio("rankings", user="u002")
    assert len(app.dataframe) == 1, "nothing is compared before an item is chosen"
    app.selectbox(key="similar_item").select("f001").run()
    assert not app.exception
    table = app.dataframe[1].value
    assert len(table) == 10
    assert table["cosine"].is_monotonic_decreasing
    silent = [c.value for c in app.caption if "no item vectors" in c.value]
    assert len(silent) == 2, "popularity and the co-visit model say that they have none"


def test_a_run_without_item_vectors_says_once_which_runs_have_them(studio, monkeypatch):
    def silent(*_: object, **__: object) -> None:
        raise InputError("a recommender without item vectors")

    app = studio("rankings", user="u002")
    monkeypatch.setattr("pages._studio.similar.ask", silent)
    app.selectbox(key="similar_item").select("f001").run()
    assert not app.exception
    assert [info.value for info in app.info if "places items in a space" in info.value]
    assert not [c.value for c in app.caption if "item vectors" in c.value]


def test_thumbs_are_kept_as_data(studio, finished_workspace):
    app = studio("rankings", user="u003")
    thumbs = [w for w in app.feedback if w.key.startswith("thumb:")]
    assert len(thumbs) == 10
    thumbs[0].set_value(1).run()
    assert not app.exception
    item = thumbs[0].key.rsplit(":", 1)[1]
    assert FeedbackStore(Workspace.open(finished_workspace[0])).latest("sample", "u003") == {item: "up"}


def test_metrics_say_the_verdict_and_compare_users(studio, finished_workspace):
    root, run_id = finished_workspace
    app = studio("metrics")
    result = RunStore(Workspace.open(root)).result(run_id)
    shown = app.success if result["beats_floor"] else app.warning
    assert SHORT_FAMILY_TITLES[result["floor"]].replace("-", "\\-") in shown[0].value
    gained, lost, equal = (
        int(m.value) for m in app.metric if m.label in ("Users better off", "Users worse off", "No difference")
    )
    assert gained + lost + equal == 60
    assert "Leave" in texts(app)


def test_an_explanation_adds_up(studio):
    app = studio("explain", user="u004")
    assert not app.exception
    gap = next(m for m in app.metric if m.label == "Additivity gap")
    assert float(gap.value) < 1e-4
    assert "Score" in app.info[0].value
    app.selectbox(key="explain_detail").select("6").run()
    assert next(m.value for m in app.metric if m.label == "Scorings") == "64"
    app.selectbox(key="explain_method").select("attention").run()
    assert not app.exception
    assert "attention" in app.error[0].value


def test_an_unknown_user_in_a_link_is_shown_as_text(studio):
    app = studio("rankings", user="<img src=x>")
    assert not app.exception
    assert "\\<img src\\=x\\>" in app.warning[0].value


def test_the_form_makes_a_spec_a_file_and_a_command(studio):
    app = studio("finetune")
    app.selectbox(key="ft_preset").select("quick").run()
    app.number_input(key="ft-quick-training.max_samples").set_value(500).run()
    assert not app.exception
    text = next(c.value for c in app.code if c.value.startswith("kind:"))
    spec = parse_run_spec(yaml.safe_load(text))
    assert spec.training.max_samples == 500
    command = next(c.value for c in app.code if c.value.startswith("llmrec train"))
    assert command == "llmrec train --preset quick --dataset sample --set training.max_samples=500"


def test_families_without_prompts_show_only_what_they_use(studio):
    app = studio("finetune")
    app.selectbox(key="ft_preset").select("ranking").run()
    assert not app.exception
    keys = [w.key for group in (app.selectbox, app.pills, app.number_input, app.text_input) for w in group]
    assert not [key for key in keys if "template" in key or key.endswith("-tasks") or "max_samples" in key]
    app.pills(key="ft-ranking-members").set_value(["item-knn", "svd"]).run()
    assert not app.exception
    spec = parse_run_spec(yaml.safe_load(next(c.value for c in app.code if c.value.startswith("kind:"))))
    members = [(member.family, getattr(member, "direction", None)) for member in spec.recommender.members]
    assert members == [("item-knn", "both"), ("item-knn", "forward"), ("svd", None)], "those of the preset stay as set"
    app.pills(key="ft-ranking-members").set_value([]).run()
    assert "members" in app.error[0].value
    assert app.button(key="ft_submit").disabled
    app.selectbox(key="ft_preset").select("sequential").run()
    app.number_input(key="ft-sequential-recommender.epochs").set_value(3).run()
    # Of the many options of a sequence model a few stand in the open, named in words; the others under Expert.
    in_the_open = {w.label for w in app.number_input}.difference(w.label for e in app.expander for w in e.number_input)
    assert in_the_open >= {"Epochs at most", "Longest history"}
    assert "Width" not in in_the_open
    app.number_input(key="ft-sequential-recommender.width").set_value(32).run()
    app.selectbox(key="ft-sequential-model").select("smollm2-135m").run()
    spec = parse_run_spec(yaml.safe_load(next(c.value for c in app.code if c.value.startswith("kind:"))))
    assert (spec.recommender.epochs, spec.recommender.model) == (3, "smollm2-135m")
    assert spec.recommender.width == 32


def test_fixed_objectives_models_of_the_wrong_kind_and_untrained_fields_are_not_offered(studio):
    app = studio("finetune")
    app.selectbox(key="ft_preset").select("listwise").run()
    assert not app.exception
    assert not [w for w in app.pills if w.key.endswith("-tasks")], "a listwise ranker learns to rank and nothing else"
    assert "all-MiniLM-L6-v2" not in app.selectbox(key="ft-listwise-model").options
    assert not app.error
    app.selectbox(key="ft_preset").select("zero-shot").run()
    assert not app.exception
    labels = {w.label for w in app.number_input}
    assert "Batch size" in labels
    assert not labels & {"Epochs", "Learning rate", "Training prompts"}


def test_weights_of_objectives_are_called_as_the_objectives_are(studio):
    app = studio("finetune")
    app.selectbox(key="ft_preset").select("multitask").run()
    assert {"Weight: clicks", "Weight: ratings", "Weight: the right order"} <= {w.label for w in app.number_input}


def test_no_objective_is_refused_at_the_form(studio):
    app = studio("finetune")
    tasks = next(w for w in app.pills if w.key.endswith("-tasks"))
    tasks.set_value([]).run()
    assert "nothing to learn" in app.error[0].value
    assert app.button(key="ft_submit").disabled


def test_an_impossible_value_is_told_with_its_field(studio):
    app = studio("finetune")
    app.text_input(key="ft-bert-click-device").set_value("toaster").run()
    assert not app.exception
    assert "device" in app.error[0].value
    assert app.button(key="ft_submit").disabled


@pytest.fixture
def own_studio(finished_workspace, tmp_path, monkeypatch):
    """Opens a page on a copy of the workspace that the test may change; also gives its run store."""
    root = tmp_path / "copy"
    shutil.copytree(finished_workspace[0], root)
    return lambda page, **query: open_page(page, root, monkeypatch, **query), RunStore(Workspace.open(root))


def test_submitting_queues_one_run_and_cancel_ends_it(own_studio):
    opened, store = own_studio
    app = opened("finetune")
    app.selectbox(key="ft_preset").select("quick").run()
    app.button(key="ft_submit").click().run()
    assert not app.exception
    queued = store.active()
    assert len(queued) == 1
    assert app.query_params["run"] in (queued[0].run_id, [queued[0].run_id])
    app.button(key="run_cancel").click().run()
    app.run()
    assert store.get(queued[0].run_id).status.state == "cancelled"
    assert app.button(key="run_resume")
    app.button(key="run_resume").click().run()
    assert not app.exception
    assert len(store.active()) == 1
    assert store.active()[0].spec.parent_run == queued[0].run_id


def test_a_clone_starts_from_the_settings_of_a_run(own_studio, finished_workspace):
    opened, _ = own_studio
    run_id = finished_workspace[1]
    app = opened("finetune", run=run_id)
    app.button(key="run_clone").click().run()
    assert not app.exception
    text = next(c.value for c in app.code if c.value.startswith("kind:"))
    assert yaml.safe_load(text)["recommender"]["family"] == "item-knn"
    assert yaml.safe_load(text)["evaluation"]["max_users"] == 60


def test_a_run_and_a_dataset_are_deleted(own_studio, finished_workspace):
    opened, store = own_studio
    app = opened("finetune", run=finished_workspace[1])
    app.button(key="run_delete").click().run()
    assert not app.exception
    assert store.list() == []
    app = opened("data")
    app.tabs[0]
    app.session_state["data_tab"] = "Versions"
    app.run()
    app.button(key="dataset_delete").click().run()
    assert not app.exception
    assert "No dataset yet" in texts(app)


def test_home_submits_the_main_job_once(own_studio):
    opened, store = own_studio
    app = opened("home")
    app.button(key="main_job").click().run()
    assert not app.exception
    assert [run.spec.preset for run in store.active()] == ["quick"]
    assert app.button(key="main_job").disabled


def test_settings_tell_the_devices_and_free_the_memory(studio, finished_workspace):
    app = studio("settings")
    app.button(key="facts").click().run()
    assert not app.exception
    assert not app.error
    facts = next(d.value for d in app.dataframe if "fact" in d.value)
    assert len(facts) >= 3
    app.button(key="stop_serving").click().run()
    assert not app.exception
    assert app.button(key="stop_serving").disabled


def test_compress_says_why_it_offers_less(studio, monkeypatch):
    """As for a run whose prefixes cannot be merged into its weights."""
    monkeypatch.setattr("llmrec_core.runs.children.methods_for", lambda spec: ["distil-two-tower"])
    monkeypatch.setattr("llmrec_core.runs.children.why_not", lambda run, method: (f"{method} needs them.", "Use lora."))
    app = studio("compress")
    assert not app.exception
    (told,) = [caption.value for caption in app.caption if "Not for this run" in caption.value]
    assert "8\\-bit weights; 4" in told
    assert "ONNX" in told
    assert "Two towers" not in told
    assert told.endswith("Int8 needs them\\. Use lora\\.")
