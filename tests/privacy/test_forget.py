"""Acceptance 25: a user is forgotten: gone from data, prompts, logs, explanations, caches; models that saw them are
flagged; an audit line without the raw id."""

import json
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
from privacy.forget_cases import DATASET, PERSON, full_workspace, light_spec, places_of, run_light

from llmrec_core.data import DatasetStore
from llmrec_core.data.dataset import Fingerprint
from llmrec_core.data.privacy import read_audit
from llmrec_core.errors import InputError, NotFoundError
from llmrec_core.feedback import FeedbackStore
from llmrec_core.forgetting import forget, forget_user
from llmrec_core.runs import RunStore
from llmrec_core.runs.flags import SAW
from llmrec_core.runs.manifest import changed_files
from llmrec_core.workspace import Workspace


@pytest.fixture
def place(template, tmp_path):
    root = tmp_path / "ws"
    shutil.copytree(template.workspace.root, root)
    return type(template)(Workspace.open(root), template.run_id)


def test_the_person_is_in_many_places_before_and_in_none_after(place):
    before = places_of(place.workspace, PERSON)
    run = f"runs/{place.run_id}"
    assert {
        f"datasets/{DATASET}/v1/users.parquet",
        f"datasets/{DATASET}/v1/rejects.parquet",
        f"datasets/{DATASET}/v2/users.parquet",
        f"feedback/{DATASET}.jsonl",
        f"{run}/artifacts/rankings.parquet",
        f"{run}/artifacts/per_user.parquet",
        f"{run}/artifacts/explanations/kept.jsonl",
        f"{run}/artifacts/predictions.parquet",
        f"{run}/events.jsonl",
        f"{run}/worker.log",
        "uploads/abc/ratings.csv",
        "serving.log",
    } <= set(before)
    report = forget_user(place.workspace, DATASET, PERSON)
    assert places_of(place.workspace, PERSON) == []
    assert report.elsewhere == []
    assert [version.interactions for version in report.versions] == [8, 8]
    assert report.flagged == [place.run_id]


def test_others_stay_whole_and_positions_move_up(place):
    store = DatasetStore(place.workspace)
    before = store.load(DATASET, 1)
    (before.folder / "portrait.json").write_text('{"n_users": 18}')
    forget_user(place.workspace, DATASET, PERSON)
    after = store.load(DATASET, 1)
    assert after.n_users == before.n_users - 1
    assert after.n_items == before.n_items
    others = before.interactions[before.interactions["user_id"] != PERSON].reset_index(drop=True)
    columns = ["user_id", "item_id", "item_idx", "rating", "timestamp"]
    pd.testing.assert_frame_equal(
        after.interactions[columns].astype({"user_id": str, "item_id": str}),
        others[columns].astype({"user_id": str, "item_id": str}),
    )
    codes = after.interactions["user_idx"].to_numpy()
    assert [after.user_ids[code] for code in codes] == after.interactions["user_id"].astype(str).tolist()
    assert after.profile("u03")["age"] == "23"
    # Somebody else's field named the person.
    assert PERSON not in after.profile("u03").values()
    rejects = pq.read_table(after.folder / "rejects.parquet").to_pydict()
    assert rejects["line"] == [23, 24]
    # Numbers kept beside the tables are made again from what is left.
    assert not (after.folder / "portrait.json").exists()


def test_the_fingerprint_is_that_of_what_is_left_and_the_old_one_is_remembered(place):
    store = DatasetStore(place.workspace)
    old = store.meta(DATASET, 1)
    forget_user(place.workspace, DATASET, PERSON)
    meta = store.meta(DATASET, 1)
    digest = Fingerprint()
    for table in ("interactions", "items", "users"):
        columns = pq.read_table(store.folder(DATASET, 1) / f"{table}.parquet").combine_chunks()
        digest.add(table, {name: columns.column(name).chunk(0) for name in columns.column_names})
    assert meta.fingerprint == digest.hexdigest() != old.fingerprint
    assert meta.former_fingerprints == (old.fingerprint,)
    assert (meta.n_removed_users, meta.n_interactions) == (1, old.n_interactions - 8)


def test_the_run_is_flagged_still_ranks_and_verifies_by_its_manifest(place):
    from llmrec_core.serving.actions import Server

    server = Server(place.workspace)
    assert server.recommend(place.run_id, PERSON, k=3)["warnings"] == []
    forget_user(place.workspace, DATASET, PERSON)
    run = RunStore(place.workspace).get(place.run_id)
    assert run.warning == SAW
    # The server had the run in memory, and drops it by itself.
    with pytest.raises(InputError, match="no user"):
        server.recommend(place.run_id, PERSON, k=3)
    answer = server.recommend(place.run_id, "u01", k=3)
    assert len(answer["items"]) == 3
    assert answer["warnings"] == [SAW]
    manifest = json.loads((run.folder / "manifest.json").read_bytes())
    known = set(manifest["files"])
    assert not known & set(changed_files(manifest, run.folder / "artifacts"))
    assert manifest["removals"][0]["files"] == ["per_user.parquet", "rankings.parquet"]
    assert not (run.folder / "checkpoints" / "checkpoint-5").exists()


def test_an_evaluation_of_a_flagged_run_carries_the_warning(place):
    again = run_light(place.workspace, kind="evaluate", parent_run=place.run_id)
    forget_user(place.workspace, DATASET, PERSON)
    assert RunStore(place.workspace).get(again).warning == SAW
    later = run_light(place.workspace, kind="evaluate", parent_run=place.run_id)
    assert RunStore(place.workspace).get(later).warning == SAW
    assert places_of(place.workspace, PERSON) == []


def test_only_models_that_saw_the_person_are_flagged(place):
    """In a split that drops short histories, a person with one interaction is in no training row."""
    ratings = place.workspace.root / "more.csv"
    rows = pd.read_csv(place.workspace.root / "uploads" / "abc" / "ratings.csv", dtype=str)
    rows = rows[rows["rating"].str.isdigit() & (rows["user_id"] != PERSON)]
    rows.loc[len(rows) + 1] = [PERSON, "003", "4", "1600000500"]
    rows.to_csv(ratings, index=False)
    from llmrec_core.data import import_files

    import_files(place.workspace, [ratings], DATASET)
    ratings.unlink()
    unseen = run_light(place.workspace, split={"min_user_interactions": 3})
    report = forget_user(place.workspace, DATASET, PERSON)
    assert report.flagged == [place.run_id]
    run = RunStore(place.workspace).get(unseen)
    assert run.warning
    assert run.warning != SAW


def test_the_audit_has_a_line_without_the_raw_id(place):
    report = forget_user(place.workspace, DATASET, PERSON)
    audit = read_audit(place.workspace)
    (line,) = audit.lines
    assert (line.action, line.dataset, line.person) == ("forget", DATASET, report.person)
    assert line.counts["interactions"] == 16
    assert line.counts["flagged_models"] == 1
    assert place.run_id in line.note
    assert audit.broken_at is None
    for path in (place.workspace.root / "privacy").rglob("*"):
        assert path.is_dir() or PERSON.encode() not in path.read_bytes()


def test_a_dry_run_counts_the_same_and_touches_nothing(place):
    before = {path: path.read_bytes() for path in place.workspace.root.rglob("*") if path.is_file()}
    dry = forget_user(place.workspace, DATASET, PERSON, dry_run=True)
    after = {path: path.read_bytes() for path in place.workspace.root.rglob("*") if path.is_file()}
    changed = {path.relative_to(place.workspace.root).parts[0] for path in after if before.get(path) != after[path]}
    assert changed <= {"privacy", "runs"}
    assert set(before) <= set(after)
    assert all(before[path] == after[path] for path in before if path.suffix != ".sqlite")
    assert dry.dry_run
    assert dry.counts == forget_user(place.workspace, DATASET, PERSON).counts
    assert dry.lines()[0] == "version 1: 8 interactions, 1 profile, 1 row of other tables"


def test_a_second_time_is_told_and_a_stranger_is_not_found(place):
    forget_user(place.workspace, DATASET, PERSON)
    again = forget_user(place.workspace, DATASET, PERSON)
    assert again.already
    assert not again.found
    assert len(read_audit(place.workspace).lines) == 1
    with pytest.raises(NotFoundError, match="no version"):
        forget_user(place.workspace, DATASET, "nobody-99")
    with pytest.raises(NotFoundError, match="no dataset"):
        forget_user(place.workspace, "other", PERSON)
    with pytest.raises(InputError, match="empty id"):
        forget_user(place.workspace, DATASET, " ")


def test_it_is_refused_while_a_run_waits_and_nothing_changes(place):
    waiting = RunStore(place.workspace).submit(light_spec())
    with pytest.raises(InputError, match=rf"{waiting} \(queued\)"):
        forget_user(place.workspace, DATASET, PERSON)
    assert f"datasets/{DATASET}/v1/users.parquet" in places_of(place.workspace, PERSON)
    RunStore(place.workspace).cancel(waiting)
    forget_user(place.workspace, DATASET, PERSON)
    assert places_of(place.workspace, PERSON) == []


STEPS = ["clean_run", "clean_version", "append_audit", "_check_gone", "_clear_uploads", "_clear_tokens"]


@pytest.mark.parametrize("step", STEPS)
def test_a_removal_cut_short_holds_up_runs_and_is_finished_the_next_time(place, monkeypatch, step):
    real, calls = getattr(forget, step), []

    def dies(*args, **kwargs):
        writes = kwargs.get("write", True)
        if writes:
            calls.append(step)
            if step == "clean_version":
                real(*args, **kwargs)
            if len(calls) == 1:
                raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(forget, step, dies)
        with pytest.raises(KeyboardInterrupt):
            forget_user(place.workspace, DATASET, PERSON)
    with pytest.raises(InputError, match="cut short"):
        RunStore(place.workspace).submit(light_spec())
    report = forget_user(place.workspace, DATASET, PERSON)
    assert report.finished
    assert places_of(place.workspace, PERSON) == []
    assert RunStore(place.workspace).get(place.run_id).warning == SAW
    assert [line.action for line in read_audit(place.workspace).lines][-1] == "forget"
    manifest = json.loads((place.workspace.runs / place.run_id / "manifest.json").read_bytes())
    artifacts = place.workspace.runs / place.run_id / "artifacts"
    assert not set(manifest["files"]) & set(changed_files(manifest, artifacts))
    RunStore(place.workspace).cancel(RunStore(place.workspace).submit(light_spec()))


@pytest.mark.parametrize("n_renames", [1, 2])
def test_a_swap_cut_short_leaves_a_version_that_is_put_back(place, monkeypatch, n_renames):
    from llmrec_core.forgetting import versions

    done = []
    real = versions.os.rename

    def rename(*args):
        if len(done) == n_renames:
            raise KeyboardInterrupt
        done.append(args)
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(versions.os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            forget_user(place.workspace, DATASET, PERSON)
    forget_user(place.workspace, DATASET, PERSON)
    assert DatasetStore(place.workspace).versions(DATASET) == [1, 2]
    assert places_of(place.workspace, PERSON) == []
    left = [path.name for path in (place.workspace.datasets / DATASET).iterdir()]
    assert sorted(left) == ["v1", "v2"]


def test_a_file_that_nobody_knows_is_found_by_the_search_and_named(place):
    strange = place.workspace.runs / place.run_id / "artifacts" / "notes.bin"
    strange.write_bytes(b"\x00\x01" + PERSON.encode() + b"\x00")
    with pytest.raises(Exception, match=r"notes\.bin"):
        forget_user(place.workspace, DATASET, PERSON)
    strange.unlink()
    assert forget_user(place.workspace, DATASET, PERSON).finished


def test_the_last_person_takes_the_version_along(tmp_path):
    from llmrec_core.data import import_files

    workspace = Workspace.open(tmp_path / "ws")
    file = tmp_path / "one.csv"
    file.write_text(f"user_id,item_id\n{PERSON},a\n{PERSON},b\n")
    import_files(workspace, [file], DATASET)
    report = forget_user(workspace, DATASET, PERSON)
    assert report.versions[0].emptied
    assert DatasetStore(workspace).versions(DATASET) == []
    assert places_of(workspace, PERSON) == []


def test_an_id_that_is_a_number_takes_no_numbers_out_of_logs(tmp_path):
    """Person "1": the rank, the step and the version 1 stay; what names user 1 goes."""
    place = full_workspace(tmp_path / "ws", tmp_path, person="1")
    log = place.workspace.runs / place.run_id / "worker.log"
    report = forget_user(place.workspace, DATASET, "1")
    assert log.read_text().endswith("there is no user '[forgotten]'.\nstep 1 of 1\n")
    events = RunStore(place.workspace).events(place.run_id)
    assert events[-1]["message"] == "slow prompt for user '[forgotten]'"
    assert any(event.get("step") == 1 for event in events)
    rankings = pd.read_parquet(place.workspace.runs / place.run_id / "artifacts" / "rankings.parquet")
    assert "1" not in set(rankings["user_id"].astype(str))
    assert 1 in set(rankings["rank"])
    users = DatasetStore(place.workspace).load(DATASET).user_ids
    assert "1" not in users
    assert "u01" in users
    assert [f.user_id for f in FeedbackStore(place.workspace).list(DATASET)] == ["u01"]
    assert report.flagged == [place.run_id]


def test_further_tables_and_given_parts_lose_the_person_too(tmp_path):
    from llmrec_core.data import Dataset

    workspace = Workspace.open(tmp_path / "ws")
    people = ["a1", PERSON, "b2", "c3"]
    rows = pd.DataFrame(
        {
            "user_id": [p for p in people for _ in range(3)],
            "item_id": ["x", "y", "z"] * 4,
            "part": ["train", "valid", "test"] * 4,
            "note": ["", f"seen with {PERSON}", "ok"] * 4,
        }
    )
    shown = pd.DataFrame({"impression_id": ["1", "2"], "user_id": [PERSON, "b2"], "candidates": ["x y", "z"]})
    told = pd.DataFrame({"instruction": ["Guess"] * 2, "input": [f"user {PERSON} liked x", "user a1 liked y"]})
    made = Dataset.from_frames(DATASET, rows, extras={"impressions": shown, "instructions": told})
    DatasetStore(workspace).save(made)
    report = forget_user(workspace, DATASET, PERSON)
    assert places_of(workspace, PERSON) == []
    assert report.versions[0].other_rows == 2
    left = DatasetStore(workspace).load(DATASET)
    assert left.extra("impressions")["user_id"].tolist() == ["b2"]
    assert left.extra("instructions")["input"].tolist() == ["user [forgotten] liked x", "user a1 liked y"]
    assert left.interactions["part"].astype(str).tolist() == ["train", "valid", "test"] * 3
    others = rows[rows["user_id"] != PERSON].assign(note=["", "seen with [forgotten]", "ok"] * 3)
    again = Dataset.from_frames(
        DATASET,
        others,
        items=left.items,
        extras={"impressions": left.extra("impressions"), "instructions": left.extra("instructions")},
    )
    assert again.fingerprint == left.fingerprint
