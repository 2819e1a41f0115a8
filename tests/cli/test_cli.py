"""The command line: documents with fixed keys, exit codes, one JSON document on stdout."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from llmrec_core.serving.actions import Server
from llmrec_core.workspace import Workspace
from tests.cli.conftest import SMALL, write_csvs

ROOT = Path(__file__).resolve().parents[2]


def test_import_document_and_rejects(llmrec, tmp_path):
    ratings, _ = write_csvs(tmp_path)
    with ratings.open("a", encoding="utf-8") as stream:
        stream.write("u01,003,five,1600000000\n")
    answer = llmrec("data", "import", ratings, "--name", "with-a-bad-row", "--json")
    assert answer.exit_code == 0
    document = answer.json
    expected = [
        "dataset",
        "rows_read",
        "rows_accepted",
        "rows_rejected",
        "rejects",
        "n_users",
        "n_items",
        "roles",
        "warnings",
    ]
    assert {*expected, "warnings"} <= set(document)
    assert (document["rows_read"], document["rows_accepted"], document["rows_rejected"]) == (241, 240, 1)
    (reject,) = document["rejects"]
    assert reject["line"] == 242
    assert reject["file"].endswith("ratings.csv")
    assert "five" in reject["reason"]


def test_data_list_and_show(llmrec):
    names = [meta["name"] for meta in llmrec("data", "list", "--json").json]
    assert "mini" in names
    shown = llmrec("data", "show", "mini", "--json").json
    assert (shown["n_users"], shown["n_items"]) == (24, 20)
    assert "mini" in llmrec("data", "list").stdout


def test_doctor_tells_what_a_run_chooses_and_what_the_machine_allows(llmrec, monkeypatch):
    from llmrec_core.models import machine

    monkeypatch.setattr(machine, "measured_peaks", lambda: machine.MatmulPeaks(186.0, 620.0))
    report = llmrec("doctor", "--json").json
    assert {"device", "attention", "precision", "padding", "batch_size", "batch_tokens"} <= set(report["choices"])
    assert report["matmul"] == {"fp32_gflops": 186.0, "bf16_gflops": 620.0}
    assert report["allows"]["bf16"]["training_samples_per_s"] > 3 * report["allows"]["fp32"]["training_samples_per_s"]
    assert report["kept tokens"]["size_bytes"] <= report["kept tokens"]["at_most_bytes"] == 1 << 30
    words = " ".join(llmrec("doctor").stdout.split())
    assert "choices: attention" in words
    assert "what bf16 allows" in words


def test_prompt_preview_keeps_the_candidate(llmrec, tiny_model):
    answer = llmrec(
        *["prompt", "preview", "--dataset", "mini", "--user", "u01", "--item", "003"],
        *["--template", "list", "--model", tiny_model, "--json"],
    )
    assert answer.exit_code == 0, answer.stderr
    document = answer.json
    assert "Film number 3" in document["text"]
    kinds = {span["kind"] for span in document["spans"]}
    assert {"history", "candidate"} <= kinds


def test_train_document(trained):
    assert {"run_id", "state", "elapsed_s", "protocol", "metrics", "baselines", "beats_floor"} <= set(trained)
    assert trained["state"] == "done"
    assert isinstance(trained["beats_floor"], bool)
    for name in ["ndcg", "hit_rate", "precision", "recall", "map", "mrr", "coverage", "novelty"]:
        assert {"mean", "ci_low", "ci_high", "n"} <= set(trained["metrics"][f"{name}@10"])
        for floor in ("popularity", "item-knn"):
            assert trained["baselines"][floor][f"{name}@10"]["mean"] is not None
    assert trained["metrics"]["auc"]["n"] > 0
    assert "Leave-one-out" in trained["protocol"]


def test_a_finished_run_keeps_no_checkpoints(llmrec, trained):
    folder = llmrec.workspace / "runs" / trained["run_id"]
    assert list((folder / "checkpoints").iterdir()) == []
    assert (folder / "artifacts" / "recommender").is_dir()


def test_recommend_document_is_deterministic_and_unseen(llmrec, trained):
    run = trained["run_id"]
    first = llmrec("recommend", run, "--user", "u01", "-k", 5, "--json").json
    assert first == llmrec("recommend", run, "--user", "u01", "-k", 5, "--json").json
    assert first["user_id"] == "u01"
    assert [item["rank"] for item in first["items"]] == [1, 2, 3, 4, 5]
    assert {"item_id", "title", "score"} <= set(first["items"][0])
    scores = [item["score"] for item in first["items"]]
    assert scores == sorted(scores, reverse=True)
    assert not {h["item_id"] for h in first["history"]} & {i["item_id"] for i in first["items"]}
    assert all(re.fullmatch(r"\d{3}", item["item_id"]) for item in first["items"]), "ids keep their zeros"


def test_similar_is_refused_where_there_are_no_item_vectors(llmrec, trained):
    answer = llmrec("similar", trained["run_id"], "--item", "003")
    assert answer.exit_code == 2
    assert "no item vectors" in answer.stderr
    assert answer.stdout == ""


def test_recommend_by_a_baseline(llmrec, trained):
    answer = llmrec("recommend", trained["run_id"], "--user", "u01", "--model", "popularity", "--json").json
    counts = [item["popularity"] for item in answer["items"]]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("method", ["shap", "attention"])
def test_explain_document(llmrec, trained, method):
    run = trained["run_id"]
    item = llmrec("recommend", run, "--user", "u01", "-k", 1, "--json").json["items"][0]["item_id"]
    answer = llmrec("explain", run, "--user", "u01", "--item", item, "--method", method, "--json")
    assert answer.exit_code == 0, answer.stderr
    document = answer.json
    assert {"user_id", "item_id", "method", "target", "base_value", "players", "additivity_gap"} <= set(document)
    assert document["method"] == method
    assert {"kind", "ref", "text", "value"} <= set(document["players"][0])
    if method == "shap":
        total = document["base_value"] + sum(p["value"] for p in document["players"])
        assert total == pytest.approx(document["target"], abs=1e-4)
        assert document["additivity_gap"] <= 1e-4


def test_runs_are_listed_shown_and_logged(llmrec, trained):
    run = trained["run_id"]
    assert run in [r["run_id"] for r in llmrec("runs", "list", "--json").json]
    shown = llmrec("runs", "show", run, "--json").json
    assert shown["status"]["state"] == "done"
    assert shown["result"] == trained
    events = llmrec("runs", "logs", run, "--json").json["events"]
    assert {"stage", "train", "validation"} <= {event["type"] for event in events}
    for command in (["runs", "list"], ["runs", "show", run], ["runs", "logs", run]):
        assert llmrec(*command).exit_code == 0


def test_evaluate_gives_the_same_figures(llmrec, trained):
    answer = llmrec("evaluate", trained["run_id"], "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.json["metrics"] == trained["metrics"]
    assert answer.json["run_id"] != trained["run_id"]


def test_text_output_is_for_people(llmrec, trained):
    answer = llmrec("runs", "show", trained["run_id"])
    assert "ndcg@10" in answer.stdout
    assert trained["verdict"].split()[0] in answer.stdout


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["train", "--preset", "nope", "--dataset", "mini"], 2, "no preset 'nope'"),
        (["train", "--preset", "quick"], 2, "--dataset"),
        (["train"], 2, "spec file"),
        (["train", "--preset", "quick", "--dataset", "nowhere"], 3, "nowhere"),
        (["train", "--preset", "quick", "--dataset", "../x"], 2, "name"),
        (["train", "--preset", "quick", "--dataset", "mini", "--set", "training.epoch=1"], 2, "training.epoch"),
        (["train", "--preset", "quick", "--dataset", "mini", "--set", "evaluation.primary_metric=x"], 2, "metric"),
        (["train", "--preset", "quick", "--dataset", "mini", "--set", "novalue"], 2, "assignment"),
        (["train", "--preset", "quick", "--dataset", "mini", "--set", "recommender.ranker.model=nope"], 2, "nope"),
        (["train", "missing.yaml"], 3, "missing.yaml"),
        (["train", "--no-such-option"], 2, "--no-such-option"),
        (["runs", "show", "nope"], 3, "nope"),
        (["runs", "logs", "../../etc"], 2, "name"),
        (["runs", "cancel", "nope"], 3, "nope"),
        (["runs", "resume", "nope"], 3, "nope"),
        (["evaluate", "nope"], 3, "nope"),
        (["recommend", "nope", "--user", "u01"], 3, "nope"),
        (["data", "show", "nope"], 3, "nope"),
        (["data", "public", "nope"], 2, "nope"),
        (["models", "get", "nope"], 2, "nope"),
        (["prompt", "preview", "--dataset", "mini", "--user", "nope", "--item", "003"], 2, "nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals_name_what_and_exit(llmrec, args, code, words):
    runs_before = llmrec("runs", "list", "--json").stdout
    answer = llmrec(*args)
    assert answer.exit_code == code, answer.stderr
    assert words in answer.stderr
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    assert llmrec("runs", "list", "--json").stdout == runs_before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user", "stranger"], "stranger"),
        (["--user", "u01", "--model", "magic"], "magic"),
    ],
)
def test_recommend_refuses_strangers(llmrec, trained, options, words):
    answer = llmrec("recommend", trained["run_id"], *options)
    assert answer.exit_code == 2
    assert words in answer.stderr


def test_a_model_without_weight_is_named_in_its_explanation(llmrec, trained):
    server = Server(Workspace.open(llmrec.workspace))
    pipeline = server.load(trained["run_id"]).recommender("model")
    told = {}
    for weight in (0.5, 0.0):
        pipeline.fusion = replace(pipeline.fusion, model_weight=weight)
        told[weight] = server.explain(trained["run_id"], "u01", "003", max_players=5)
    assert told[0.5]["notes"] == []
    assert "no weight in this run" in told[0.0]["notes"][0]
    fields = [player["value"] for player in told[0.0]["players"] if player["kind"] == "candidate"]
    assert fields
    assert max(map(abs, fields)) < 1e-12, "its own words move nothing"


def test_explain_tells_as_many_reasons_apart_as_asked(llmrec, trained):
    options = [trained["run_id"], "--user", "u01", "--item", "003"]
    document = llmrec("explain", *options, "--max-players", 5, "--json").json
    assert (len(document["players"]), document["budget"]) == (5, 2**5)
    refused = llmrec("explain", *options, "--max-players", 40)
    assert refused.exit_code == 2
    assert "5 to 14" in refused.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user", "u01", "--item", "999"], "999"),
        (["--user", "u01", "--item", "003", "--method", "tarot"], "tarot"),
    ],
)
def test_explain_refuses_strangers(llmrec, trained, options, words):
    answer = llmrec("explain", trained["run_id"], *options)
    assert answer.exit_code == 2
    assert words in answer.stderr


def test_a_template_fault_in_a_run_keeps_exit_code_2(llmrec, tiny_model):
    answer = llmrec(
        *["train", "--preset", "bert-click", "--dataset", "mini", *SMALL],
        f"--set=recommender.ranker.model={tiny_model}",
        "--set=prompt.source={{ candidate.title.__class__ }} {{ nobody }}",
    )
    assert answer.exit_code == 2, answer.stderr


def test_a_model_folder_with_a_pickle_only_is_refused(llmrec, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    answer = llmrec("train", "--preset", "quick", "--dataset", "mini", f"--set=recommender.ranker.model={folder}")
    assert answer.exit_code == 2, answer.stderr
    assert "safetensors" in answer.stderr


def test_import_refuses_and_writes_nothing(llmrec, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("", encoding="utf-8")
    answer = llmrec("data", "import", empty, "--name", "never")
    assert answer.exit_code == 2
    assert "empty.csv" in answer.stderr
    assert "never" not in [meta["name"] for meta in llmrec("data", "list", "--json").json]


# ------------------------------------------------------------------------------------------------ as a process


def _llmrec_process(workspace: Path, *args: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "llmrec_core.cli", *args],
        env={**os.environ, "LLMREC_WORKSPACE": str(workspace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **kwargs,
    )


def test_interrupt_cancels_the_run_with_130(llmrec, tiny_model):
    process = _llmrec_process(
        llmrec.workspace,
        *["train", "--preset", "bert-click", "--dataset", "mini", *SMALL],
        *[f"--set=recommender.ranker.model={tiny_model}", "--set=training.epochs=1000", "--set=name=to-cancel"],
        "--set=training.early_stopping_patience=0",
    )
    with process:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            runs = [r for r in llmrec("runs", "list", "--json").json if r["name"] == "to-cancel"]
            if runs and runs[0]["stage"] == "training":
                break
            time.sleep(0.3)
        else:
            pytest.fail("the run never reached training")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert [r["state"] for r in llmrec("runs", "list", "--json").json if r["name"] == "to-cancel"] == ["cancelled"]


def test_detach_runs_without_the_caller(llmrec):
    process = _llmrec_process(
        llmrec.workspace,
        *["train", "--preset", "quick", "--dataset", "mini", "--set=recommender.family=popularity"],
        *["--set=evaluation.n_bootstrap=100", *SMALL[:2], "--detach", "--json"],
    )
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    run_id = yaml.safe_load(stdout)["run_id"]
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        state = llmrec("runs", "show", run_id, "--json").json["status"]["state"]
        if state not in ("queued", "running"):
            break
        time.sleep(0.3)
    assert state == "done"


def test_studio_serves_the_app_on_localhost(llmrec):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = _llmrec_process(llmrec.workspace, "studio", "--headless", "--port", str(port), start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer:
                    assert answer.read() == b"ok"
                break
            except OSError:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, "the app did not come up"
                time.sleep(0.3)
        addresses = {
            connection.laddr.ip
            for child in psutil.Process(process.pid).children(recursive=True)
            for connection in child.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert addresses <= {"127.0.0.1", "::1"}
        assert addresses
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)


# ------------------------------------------------------------------------------------------------ documentation


def _readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return sorted(
        {" ".join(m.split()) for m in re.findall(r"\bllmrec ((?:models |data |runs |prompt )?[a-z]+)\b", text)}
    )


def test_readme_names_real_commands(llmrec):
    commands = _readme_commands()
    assert len(commands) >= 12
    for command in commands:
        answer = llmrec(*command.split(), "--help")
        assert answer.exit_code == 0, f"README names `llmrec {command}`, which does not exist"


def test_every_command_stands_in_the_readme(llmrec):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for group in ("", "models", "data", "prompt", "runs"):
        listing = llmrec(*group.split(), "--help").stdout.split("Commands:")[1]
        for name in re.findall(r"^  ([a-z]+)  ", listing, flags=re.M):
            assert re.search(rf"\b{name}\b", readme), f"`llmrec {group} {name}` is not in the README"


def test_presets_in_the_readme_are_the_presets():
    from llmrec_core.presets import PRESETS

    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Presets")[1].split("##")[0]
    assert re.findall(r"^\| `([a-z-]+)`", section, flags=re.M) == list(PRESETS)


def test_the_spec_in_the_readme_is_valid():
    from llmrec_core.specs import parse_run_spec

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parse_run_spec(yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, flags=re.S)[1]))
