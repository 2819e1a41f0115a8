"""``llmrec data``: guess, import with corrections and mappings, refused rows, versions, portraits."""

from __future__ import annotations

import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from llmrec_core.data.mapping import read_mapping

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def votes(tmp_path) -> Path:
    path = tmp_path / "votes.csv"
    path.write_text("who;what;mark\nu1;a;5\nu1;b;3\nu2;a;bad\nu3;c;1\n", encoding="utf-8")
    return path


SAID = ["--map", "user_id=who", "--map", "item_id=what", "--map", "rating=mark"]


def test_guess_shows_all_and_writes_nothing(llmrec, votes):
    before = {meta["name"] for meta in llmrec("data", "list", "--json").json}
    found = llmrec("data", "guess", votes, *SAID, "--json").json
    assert [guess["file"] for guess in found] == ["votes.csv"]
    assert found[0]["kind"] == "interactions"
    assert found[0]["separator"] == ";"
    assert found[0]["roles"] == {"user_id": "who", "item_id": "what", "rating": "mark"}
    assert found[0]["preview"][1] == {"who": "u1", "what": "b", "mark": "3"}
    words = llmrec("data", "guess", votes, *SAID).stdout
    assert "user_id: who" in words
    assert "u1" in words
    assert {meta["name"] for meta in llmrec("data", "list", "--json").json} == before


def test_guess_tells_what_is_open(llmrec, tmp_path):
    path = tmp_path / "dates.csv"
    path.write_text("user_id,item_id,date\nu1,a,03/04/2024\nu2,b,05/06/2024\n")
    question = llmrec("data", "guess", path, "--json").json[0]["questions"][0]
    assert question["id"] == "day_first"
    assert question["default"] is None
    assert "--map day_first=yes" in " ".join(llmrec("data", "guess", path).stdout.split())


def test_guess_of_a_damaged_file_is_refused(llmrec, tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"PAR1 nothing")
    answer = llmrec("data", "guess", path)
    assert answer.exit_code == 2
    assert "bad.parquet" in answer.stderr


def test_a_saved_mapping_repeats_the_import(llmrec, votes, tmp_path):
    kept = tmp_path / "votes.yaml"
    first = llmrec("data", "import", votes, "--name", "again", *SAID, "--save-mapping", kept, "--json")
    assert first.exit_code == 0, first.stderr
    assert read_mapping(kept.read_text()).files["votes.csv"].roles["user_id"] == "who"
    july = tmp_path / "votes-july.csv"
    july.write_text(votes.read_text() + "u4;a;2\n")
    second = llmrec("data", "import", july, "--name", "again", "--mapping", kept, "--json")
    assert second.exit_code == 0, second.stderr
    assert second.json["roles"] == first.json["roles"]
    assert second.json["rows_accepted"] == 4
    versions = llmrec("data", "versions", "again", "--json").json
    assert [v["version"] for v in versions] == [1, 2]
    assert versions[1]["change"]["rows_added"] == 1
    assert versions[1]["change"]["users_added"] == 1
    assert "+1 rows" in " ".join(llmrec("data", "versions", "again").stdout.split())


def test_a_mapping_that_fits_nothing_is_refused(llmrec, votes, tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("files:\n  other.csv: {kind: items}\n")
    answer = llmrec("data", "import", votes, "--name", "no", "--mapping", path)
    assert answer.exit_code == 2
    assert "other.csv" in answer.stderr
    path.write_text("files:\n  votes.csv: {knd: items}\n")
    answer = llmrec("data", "import", votes, "--name", "no", "--mapping", path)
    assert answer.exit_code == 2
    assert "line 2" in answer.stderr
    assert "'kind'" in answer.stderr
    assert "no" not in [meta["name"] for meta in llmrec("data", "list", "--json").json]


def test_refused_rows_are_listed_and_written(llmrec, votes, tmp_path):
    assert llmrec("data", "import", votes, "--name", "refused", *SAID).exit_code == 0
    rows = llmrec("data", "rejects", "refused", "--json").json
    assert [(row["file"], row["line"]) for row in rows] == [("votes.csv", 4)]
    assert "bad" in rows[0]["reason"]
    path = tmp_path / "refused.csv"
    assert llmrec("data", "rejects", "refused", "--out", path).exit_code == 0
    assert path.read_text().splitlines()[0].startswith("file,line,column,reason")
    assert "line 4" in llmrec("data", "rejects", "refused", "--version", 1).stdout
    assert llmrec("data", "rejects", "refused", "--version", 9).exit_code == 3


def test_parts_on_the_command_line_become_a_split(llmrec, tmp_path):
    for name, rows in {"a": "u1,x,5\nu2,y,3\n", "b": "u1,y,4\n", "c": "u2,x,1\n"}.items():
        (tmp_path / f"{name}.csv").write_text("user_id,item_id,rating\n" + rows)
    parts = [f"--part={part}={tmp_path / name}.csv" for part, name in (("train", "a"), ("valid", "b"), ("test", "c"))]
    answer = llmrec("data", "import", "--name", "parted", *parts, "--json")
    assert answer.exit_code == 0, answer.stderr
    from llmrec_core.data import DatasetStore
    from llmrec_core.workspace import Workspace

    dataset = DatasetStore(Workspace.open(llmrec.workspace)).load("parted")
    assert dataset.interactions["part"].tolist() == ["train", "train", "valid", "test"]


def test_options_are_answers(llmrec, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("user_id,item_id,rating\n" + "".join(f"u{i % 5},i{i},{i % 6}\n" for i in range(60)) + "u0,i0,5\n")
    refused = llmrec("data", "import", path, "--name", "zeros")
    assert refused.exit_code == 2
    assert "zero=unrated" in refused.stderr
    answer = llmrec("data", "import", path, "--name", "zeros", "--zero", "unrated", "--duplicates", "last", "--json")
    assert answer.exit_code == 0, answer.stderr
    versions = llmrec("data", "versions", "zeros", "--json").json
    assert versions[0]["n_interactions"] == 60


def test_users_are_hidden_on_request(llmrec, votes):
    assert llmrec("data", "import", votes, "--name", "hidden", *SAID, "--pseudonymise").exit_code == 0
    from llmrec_core.data import DatasetStore
    from llmrec_core.workspace import Workspace

    users = DatasetStore(Workspace.open(llmrec.workspace)).load("hidden").user_ids.tolist()
    assert not {"u1", "u3"} & set(users)
    assert len(users) == 2


def test_several_tables_in_an_archive(llmrec, tmp_path):
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ratings.csv", "user_id,item_id\nu1,a\nu2,b\n")
        archive.writestr("items.csv", "item_id,title\na,Apple\nb,Pear\n")
    found = llmrec("data", "guess", path, "--json").json
    assert {guess["file"]: guess["kind"] for guess in found} == {
        "export.zip/items.csv": "items",
        "export.zip/ratings.csv": "interactions",
    }
    said = ["--map", "leave_out:items.csv=yes"]
    found = llmrec("data", "guess", path, *said, "--json").json
    assert {guess["file"]: guess["left_out"] for guess in found} == {
        "export.zip/items.csv": True,
        "export.zip/ratings.csv": False,
    }
    answer = llmrec("data", "import", path, "--name", "export", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert answer.json["n_items"] == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--part", "dev=x.csv"], "part=FILE"),
        (["--part", "train"], "part=FILE"),
        ([], "no file was given"),
        (["nowhere.csv"], "nowhere.csv"),
        (["http://127.0.0.1:9/r.csv"], "private network"),
        (["file:///etc/passwd"], "http"),
    ],
)
def test_refusals_say_why(llmrec, args, words):
    answer = llmrec("data", "import", "--name", "refusal", *args)
    assert answer.exit_code == 2
    assert words in answer.stderr
    assert "refusal" not in [meta["name"] for meta in llmrec("data", "list", "--json").json]


def test_a_portrait_in_numbers(llmrec):
    found = llmrec("data", "portrait", "mini", "--json").json
    assert found["name"] == "mini"
    assert "mini" in llmrec("data", "portrait", "mini").stdout
    assert llmrec("data", "portrait", "nowhere").exit_code == 3


def test_the_mapping_in_the_readme_is_valid():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own data")[1]
    document = re.search(r"```yaml\n(.*?)```", text, flags=re.S)[1]
    assert yaml.safe_load(document)["version"] == 1
    assert len(read_mapping(document).entries()) >= 12


def test_a_private_address_is_reached_only_when_told(llmrec):
    served = b"user_id,item_id\nu1,a\nu2,b\n"

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(served)

        def log_message(self, *args):
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}/far.csv"
        assert llmrec("data", "import", address, "--name", "far").exit_code == 2
        answer = llmrec("data", "import", address, "--name", "far", "--allow-private-address", "--json")
        assert answer.exit_code == 0, answer.stderr
        assert answer.json["rows_accepted"] == 2
        found = llmrec("data", "guess", address, "--allow-private-address", "--json").json
        assert found[0]["file"] == "far.csv"
    finally:
        server.shutdown()
        server.server_close()


def test_a_portrait_of_data_with_missing_ratings(llmrec, tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(
        "user_id,item_id,rating\n" + "".join(f"u{i % 9},i{i % 7},{'' if i % 3 else i % 5 + 1}\n" for i in range(90))
    )
    assert llmrec("data", "import", path, "--name", "some-rated").exit_code == 0
    found = llmrec("data", "portrait", "some-rated", "--json")
    assert found.exit_code == 0, found.stderr
    assert sum(found.json["ratings"]["counts"]) == 30
    # 1 to 5 by turns: i = 0, 3, 6 ... gives i % 5 + 1, six of each.
    assert found.json["mean_rating"] == 3.0


def test_files_that_look_like_a_split_are_mixed_only_with_a_word(llmrec, tmp_path):
    paths = []
    for part, item in (("train", "x"), ("test", "y")):
        path = tmp_path / f"shop.{part}.csv"
        path.write_text(f"user_id,item_id,rating\nu1,{item},5\n")
        paths.append(path)
    warnings = llmrec("data", "import", *paths, "--name", "mixed", "--json").json["warnings"]
    assert any("--part train=shop.train.csv --part test=shop.test.csv" in warning for warning in warnings)
    told = [f"--part=train={paths[0]}", f"--part=test={paths[1]}"]
    warnings = llmrec("data", "import", "--name", "unmixed", *told, "--json").json["warnings"]
    assert not any("mixed" in warning for warning in warnings)


def test_what_stands_between_colons_stays_text(llmrec, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("user,item,a:x:b\nu1,i1,:smile:\nu2,i2,:smile:\nu1,i2,:smile:\n", encoding="utf-8")
    shown = llmrec("data", "guess", path).stdout
    assert "a:x:b" in shown
    assert ":smile:" in shown
    refused = llmrec("data", "import", "--name", "t", path, "--map", "rating=none")
    assert "a:x:b" in refused.stderr


def test_a_file_is_of_one_part(llmrec, votes):
    answer = llmrec("data", "import", "--name", "twice", "--part", f"train={votes}", "--part", f"test={votes}", *SAID)
    assert answer.exit_code == 2
    assert "votes.csv was given as two parts" in answer.stderr
