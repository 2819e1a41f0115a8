"""A finished run is compressed through the real worker, and compared on the command line and on the screen."""

import json

import pandas as pd
from page_helpers import open_page, texts


def test_a_compressed_run_is_a_run_like_any_other(llmrec, trained, monkeypatch):
    parent = trained["run_id"]
    nothing = llmrec("compress", parent)
    assert nothing.exit_code == 0
    assert "no compressed children" in nothing.stdout
    answer = llmrec("compress", parent, "--method", "int8", "--set", "embeddings=true", "--json")
    assert answer.exit_code == 0, answer.stderr
    child = answer.json["run_id"]
    found = answer.json["compression"]
    assert found["method"] == "int8"
    assert found["parent_run"] == parent
    assert found["child"]["size_bytes"] < found["parent"]["size_bytes"]
    assert answer.json["protocol"] == trained["protocol"]
    assert answer.json["baselines"] == trained["baselines"], "the same floors, measured on the same users"
    metric = found["metric"]
    assert found["value"] == answer.json["metrics"][metric]["mean"]
    assert found["parent_value"] == trained["metrics"][metric]["mean"]
    ours, theirs = (
        pd.read_parquet(llmrec.workspace / "runs" / run / "artifacts" / "per_user.parquet") for run in (child, parent)
    )
    ours, theirs = (f[(f["model"] == "model") & (f["metric"] == metric)] for f in (ours, theirs))
    gap = ours.set_index("user_id")["value"] - theirs.set_index("user_id")["value"]
    assert abs(found["difference"]["mean"] - gap.mean()) < 1e-9
    # It ranks and explains, and a child of whole numbers cannot be trained on.
    assert llmrec("recommend", child, "--user", "u00", "--json").exit_code == 0
    assert llmrec("explain", child, "--user", "u00", "--item", "001", "--json").exit_code == 0
    refused = llmrec("train", "--continue-from", child)
    assert refused.exit_code == 2
    assert "is a compressed one" in refused.stderr

    rows = json.loads(llmrec("compress", parent, "--json").stdout)
    assert [row["method"] for row in rows] == ["parent", "int8"]
    assert rows[1]["size_share"] < 1
    table = llmrec("compress", parent).stdout
    assert child in table
    assert "8-bit weights" in table

    app = open_page("compress", llmrec.workspace, monkeypatch, run=parent)
    assert not app.exception
    assert not app.error
    assert list(app.dataframe[0].value["What"]) == ["The run itself", "8-bit weights"]
    app.multiselect(key="compress_methods").set_value(["int4", "distil"]).run()
    assert "Fewer layers, taught" in texts(app)
    assert not app.exception
    app = open_page("compress", llmrec.workspace, monkeypatch, run=child)
    assert "compressed to its end already" in texts(app)
    told = llmrec("compress", child, "--method", "onnx")
    assert told.exit_code == 2
    assert f"made from: {parent}, with the field int8 switched on" in " ".join(told.stderr.split())


def test_wrong_wishes_are_refused_before_anything_is_queued(llmrec, trained):
    runs = len(json.loads(llmrec("runs", "list", "--json").stdout))
    for args, words in (
        (["--method", "zip"], "no method"),
        (["--method", "int8", "--set", "bits=3"], "unknown field"),
        (["--method", "prune-heads", "--set", "share=2"], "less than 1"),
        (["--set", "share=2"], "nothing to start"),
    ):
        answer = llmrec("compress", trained["run_id"], *args)
        assert answer.exit_code == 2, args
        assert words in answer.stderr, args
    assert len(json.loads(llmrec("runs", "list", "--json").stdout)) == runs
    assert llmrec("compress", "20200101-000000-aaaaa", "--method", "int8").exit_code == 3


def test_a_model_below_the_run_that_is_gone_is_told_by_command_and_screen(llmrec, trained, monkeypatch):
    """As after LoRA, where a run holds adapters alone."""
    parent = trained["run_id"]
    runs = len(json.loads(llmrec("runs", "list", "--json").stdout))
    head = llmrec.workspace / "runs" / parent / "artifacts" / "recommender" / "ranker" / "recommender.json"
    before = head.read_text()
    told = json.loads(before) | {"whole_model": False, "base": {"model": "smollm2-135m"}}
    try:
        head.write_text(json.dumps(told))
        answer = llmrec("compress", parent, "--method", "int8")
        app = open_page("compress", llmrec.workspace, monkeypatch, run=parent)
        app.button(key="compress_start").click().run()
    finally:
        head.write_text(before)
    assert answer.exit_code == 2
    for said in (answer.stderr, app.error[0].value.replace("\\", "")):
        assert "models get smollm2-135m" in " ".join(said.split())
    assert not app.exception
    assert len(json.loads(llmrec("runs", "list", "--json").stdout)) == runs
