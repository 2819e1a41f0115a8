"""``llmrec data split``: words, sizes and checks, and refusals that name the field."""

import pytest

KEYS = {"dataset", "version", "spec", "protocol", "sizes", "leakage"}


# Every protocol is cut, drawn and checked under tests/data and tests/pages; here those with sizes of their own.
@pytest.mark.parametrize("protocol", ["auto", "rolling-temporal", "cold-user", "cold-item"])
def test_every_protocol_on_the_command_line(llmrec, protocol):
    answer = llmrec("data", "split", "mini", "--protocol", protocol, "--set", "known_interactions=3", "--json")
    assert answer.exit_code == 0, answer.stderr
    document = answer.json
    assert set(document) == KEYS
    assert document["leakage"]["ok"]
    assert {"name", "title", "verdict", "n_checked", "n_violations", "examples", "words"} <= set(
        document["leakage"]["checks"][0]
    )
    assert sum(document["sizes"]["rows"].values()) == 240
    users, items = document["sizes"]["users"], document["sizes"]["items"]
    assert max(users.values()) <= 24 <= sum(users.values())
    # Users of leave-one-out are asked in both parts; cold items are of one part alone.
    assert protocol != "auto" or users == {"train": 24, "valid": 24, "test": 24, "out": 0}
    assert protocol != "cold-item" or sum(items.values()) == 20
    assert document["spec"]["protocol"] == ("leave-one-out" if protocol == "auto" else protocol)


def test_for_people(llmrec):
    answer = llmrec("data", "split", "mini", "--protocol", "cold-item", "--set", "test_fraction=0.2")
    assert answer.exit_code == 0
    assert "Cold items: 20% of items" in answer.stdout
    assert "Withheld items are absent from training" in answer.stdout
    assert "passed" in answer.stdout
    assert "Leakage check" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "by-colour"], "Protocols are: auto, given, leave-one-out"),
        (["--set", "sed=3"], "sed: unknown field"),
        (["--protocol", "rolling-temporal", "--set", "fold=9"], "no fold 9"),
        (["--protocol", "given"], "--part train=FILE"),
        (["--protocol", "group-stratified", "--set", "group_by=user:colour"], "no field 'colour'"),
        (["--set", "time_from=soon"], "no ISO date"),
    ],
)
def test_refusals_name_the_field(llmrec, arguments, words):
    answer = llmrec("data", "split", "mini", *arguments)
    assert answer.exit_code == 2
    assert words in " ".join(answer.stderr.split())


def test_unknown_dataset(llmrec):
    assert llmrec("data", "split", "nowhere").exit_code == 3


def test_data_that_came_split_is_trained_as_it_came(llmrec, tmp_path):
    """From two files on the command line to the run's own record of its protocol."""
    import json

    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    lines = [f"u{u},i{(u + n) % 12:02d},{1_600_000_000 + 100 * n + u}" for u in range(12) for n in range(6)]
    train.write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n", encoding="utf-8")
    held = [f"u{u},i{(u + 8) % 12:02d},{1_600_001_000 + u}" for u in range(12)]
    test.write_text("user_id,item_id,timestamp\n" + "\n".join(held) + "\n", encoding="utf-8")
    answer = llmrec(
        "data", "import", "--name", "parted", "--part", f"train={train}", "--part", f"test={test}", "--json"
    )
    assert answer.exit_code == 0, answer.stderr
    sizes = llmrec("data", "split", "parted", "--json").json
    assert sizes["spec"]["protocol"] == "given"
    assert sizes["sizes"]["rows"]["test"] == 12
    light = ["--set", "recommender.family=item-knn", "--set", "evaluation.n_bootstrap=100"]
    answer = llmrec("train", "--preset", "bert-click", "--dataset", "parted", *light, "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.json["protocol"].startswith("Given: every row is in the part that came with the data.")
    (kept,) = llmrec.workspace.glob(f"runs/{answer.json['run_id']}/artifacts/leakage.json")
    assert json.loads(kept.read_text(encoding="utf-8"))["ok"]


def test_a_leak_stops_a_run_before_it_learns(llmrec, monkeypatch):
    import json
    from dataclasses import replace

    import numpy as np

    from llmrec_core.data import make_split
    from llmrec_core.errors import DataError
    from llmrec_core.runs import jobs
    from llmrec_core.specs import RunSpec

    def leaking(dataset, spec):
        split = make_split(dataset, spec)
        return replace(split, train=np.append(split.train, split.test[:1]))

    events = []

    class Run:
        run_id, resume_from, workspace = "leaky", None, None
        artifacts_dir = llmrec.workspace / "leaky"
        checkpoint_dir = llmrec.workspace / "none"

        def set_device(self, device): ...

        def should_stop(self): ...

        def emit(self, event_type, **payload):
            events.append({"type": event_type, **payload})

    from llmrec_core.workspace import Workspace

    run = Run()
    run.workspace = Workspace.open(llmrec.workspace)
    monkeypatch.setattr(jobs, "make_split", leaking)
    spec = RunSpec.model_validate({"dataset": {"name": "mini"}, "recommender": {"family": "popularity"}})
    with pytest.raises(DataError, match="held-out rows leak into training: Every row is in one part, once"):
        jobs.run_job(spec, run)
    report = json.loads((run.artifacts_dir / "leakage.json").read_text(encoding="utf-8"))
    assert not report["ok"]
    assert [e["stage"] for e in events if e["type"] == "stage"] == ["data"]
    assert any(e["type"] == "log" and e["level"] == "error" for e in events)
