"""A fine-tuned language model beside a forgotten person: it still loads, ranks and explains, and says what it saw."""

import json

import pytest
from privacy.forget_cases import DATASET, PERSON, places_of, write_files
from tiny_models import write_tiny_bert

from llmrec_core.data import import_files
from llmrec_core.errors import InputError
from llmrec_core.forgetting import forget_user
from llmrec_core.presets import preset_spec
from llmrec_core.runs import RunStore, run_foreground
from llmrec_core.runs.flags import SAW
from llmrec_core.runs.manifest import changed_files
from llmrec_core.workspace import Workspace


def small(model) -> dict:
    """Settings that make a real fine-tuning of the tiny model last seconds."""
    return {
        "recommender.ranker.model": str(model),
        "split.min_user_interactions": 0,
        "split.min_item_interactions": 0,
        "training.max_samples": 60,
        "training.batch_size": 16,
        "training.validation_every": 4,
        "training.validation_samples": 16,
        "training.precision": "fp32",
        "recommender.n_candidates": 4,
        "recommender.fusion_users": 10,
        "evaluation.max_users": 18,
        "evaluation.n_bootstrap": 100,
    }


def test_a_whole_journey_with_a_fine_tuned_model(tmp_path):
    from llmrec_core.serving.actions import Server

    workspace = Workspace.open(tmp_path / "ws")
    import_files(workspace, write_files(tmp_path), DATASET)
    model = tmp_path / "tiny-bert"
    write_tiny_bert(model)
    run_id = RunStore(workspace).submit(preset_spec("bert-click", DATASET, small(model)))
    assert run_foreground(workspace, run_id, lambda event: None).state == "done"
    server = Server(workspace, device="cpu")
    # Rankings and explanations of the person, kept as a screen or a later room would keep them.
    ranking = server.recommend(run_id, PERSON, k=4)
    explanation = server.explain(run_id, PERSON, ranking["items"][0]["item_id"], max_players=5)
    artifacts = workspace.runs / run_id / "artifacts"
    for name, answer in (("ranking", ranking), ("explanation", explanation)):
        (artifacts / f"{name}.jsonl").write_text(json.dumps(answer) + "\n")
    other = server.recommend(run_id, "u02", k=4)
    assert f"runs/{run_id}/artifacts/explanation.jsonl" in places_of(workspace, PERSON)

    report = forget_user(workspace, DATASET, PERSON)

    assert report.flagged == [run_id]
    assert places_of(workspace, PERSON) == []
    assert (artifacts / "explanation.jsonl").read_text() == ""
    with pytest.raises(InputError, match="no user"):
        server.explain(run_id, PERSON, ranking["items"][0]["item_id"])
    again = Server(workspace, device="cpu").recommend(run_id, "u02", k=4)
    assert [item["item_id"] for item in again["items"]] == [item["item_id"] for item in other["items"]]
    assert [item["score"] for item in again["items"]] == pytest.approx([item["score"] for item in other["items"]])
    assert again["warnings"] == [SAW]
    explained = server.explain(run_id, "u02", again["items"][0]["item_id"], max_players=5)
    assert explained["additivity_gap"] < 1e-3
    assert explained["warnings"] == [SAW]
    manifest = json.loads((workspace.runs / run_id / "manifest.json").read_bytes())
    assert not set(manifest["files"]) & set(changed_files(manifest, artifacts))
