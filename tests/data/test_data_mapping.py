"""The mapping document: what it says as corrections, there and back as YAML, and what is refused, with its line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data import guess_files, import_files, part_hint
from llmrec_core.data._corrections import parse_mapping
from llmrec_core.data._role_names import ROLES
from llmrec_core.data.mapping import (
    FileMapping,
    ImportMapping,
    ValueMapping,
    dump_mapping,
    fitted,
    load_mapping,
    mapping_of,
    read_mapping,
)
from llmrec_core.errors import DataError, InputError
from llmrec_core.workspace import Workspace

DOCUMENT = """\
version: 1
duplicates: last
values: {decimal: comma, day_first: yes, zero: unrated}
privacy:
  pseudonymise: yes
  mask: {description: [email, phone]}
roles:
  user_id: 007
  items:title: name
  rating:
files:
  ratings-*.csv:
    header: no
    separator: ";"
    missing: 99
    part: train
    roles: {user_id: cust}
  notes.csv: {leave_out: true}
"""


def test_a_document_says_the_same_as_entries():
    assert read_mapping(DOCUMENT).entries() == [
        "user_id=007",
        "items:title=name",
        "rating=",
        "duplicates=last",
        "decimal=comma",
        "day_first=yes",
        "zero=unrated",
        "pseudonymise=yes",
        "mask:description=email+phone",
        "part:ratings-*.csv=train",
        "separator:ratings-*.csv=;",
        "header:ratings-*.csv=no",
        "missing:ratings-*.csv=99",
        "user_id:ratings-*.csv=cust",
        "leave_out:notes.csv=yes",
    ]


def test_entries_are_understood_file_by_file():
    corrections = parse_mapping(read_mapping(DOCUMENT).entries())
    assert corrections.option("separator", "export.zip/ratings-05.csv") == ";"
    assert corrections.option("separator", "notes.csv") is None
    assert corrections.option("leave_out", "notes.csv") == "yes"
    assert corrections.roles_of("ratings-05.csv") == [("user_id", "cust")]
    assert corrections.roles_of("notes.csv") == []
    assert dict(corrections.options) == {
        "duplicates": "last",
        "decimal": "comma",
        "day_first": "yes",
        "zero": "unrated",
        "pseudonymise": "yes",
        "mask:description": "email+phone",
    }


def test_a_whole_name_speaks_before_a_bare_name_and_a_pattern():
    corrections = parse_mapping(["kind:*=users", "kind:a.csv=items", "kind:x.zip/a.csv=interactions"])
    assert corrections.option("kind", "x.zip/a.csv") == "interactions"
    assert corrections.option("kind", "y.zip/a.csv") == "items"
    assert corrections.option("kind", "b.csv") == "users"


def test_a_name_with_an_equals_sign_is_found_again():
    mapping = ImportMapping(files={"date=05/a.csv": FileMapping(kind="items", roles={"title": "a=b"})})
    corrections = parse_mapping(mapping.entries())
    assert corrections.option("kind", "date=05/a.csv") == "items"
    assert corrections.roles_of("date=05/a.csv") == [("title", "a=b")]


words = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        ImportMapping,
        duplicates=st.sampled_from([None, "last", "mean"]),
        values=st.builds(ValueMapping, zero=st.sampled_from([None, "unrated"]), timezone=st.none() | words),
        roles=st.dictionaries(st.sampled_from(ROLES), words | st.just("")),
        files=st.dictionaries(
            words,
            st.builds(
                FileMapping,
                kind=st.none() | words,
                separator=st.none() | st.sampled_from([";", "\t", "::", "#", "|", "yes"]),
                header=st.sampled_from([None, True, False]),
                missing=st.none() | words,
                roles=st.dictionaries(st.sampled_from(ROLES), words | st.just("")),
                columns=st.lists(words, max_size=4).map(tuple),
            ),
            max_size=3,
        ),
    )
)
def test_there_and_back(mapping):
    assert read_mapping(dump_mapping(mapping)) == mapping


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x", "line 1: anchors and aliases"),
        ("duplicates: last\nvershun: 1", "line 2: unknown key 'vershun'. Did you mean 'version'?"),
        (
            "files:\n  a.csv:\n    seperator: ;",
            "line 3: unknown key 'files.a.csv.seperator'. Did you mean 'separator'?",
        ),
        ("values:\n  decimal: dot", "line 2: values.decimal: input should be 'auto', 'point' or 'comma'"),
        ("values: {zeros: x}", "Did you mean 'zero'?"),
        ("privacy: {zzz: x}", "Known are pseudonymise, mask"),
        ("[", "not YAML"),
        ("- a", "list of `key: value`"),
        ("a: !!python/object:os.system x", "the tag"),
        ("version: 2", "this Studio reads version 1"),
        ("roles: {a: 1, a: 2}", "stands there twice"),
        ("files: {a: {header: maybe}}", "files.a.header"),
        ("files: {a: {header_row: 0}}", "files.a.header_row"),
        ("--- 1\n--- 2", "line 2"),
        ("? [a]\n: b", "a key is one word"),
        ("files: []", "files: input should be a valid dictionary"),
        ('files: {a.csv: {kind: "items\\n"}}', "control characters"),
        ("\x00", "not YAML"),
        ("x: " + "[" * 100_000, "nested or long"),
        ("x: [" + "1," * 50_000 + "]", "nested or long"),
        (" " * 600_000, "too large"),
    ],
    ids=range(21),
)
def test_what_cannot_be_meant_is_refused_with_its_place(text, words):
    # Of this process alone: a machine with much else to do is not slower by this clock.
    began = time.process_time()
    with pytest.raises(DataError) as refused:
        read_mapping(text, "m.yaml")
    assert words in str(refused.value)
    assert str(refused.value).startswith("m.yaml")
    assert time.process_time() - began < 5


def test_a_billion_laughs_stay_small():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [" + ",".join([f"*{chr(97 + i)}"] * 9) + "]\n" for i in range(9)
    )
    with pytest.raises(DataError, match="anchors and aliases"):
        read_mapping(bomb)


def test_files_are_read_and_refused(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes(b"\xef\xbb\xbfduplicates: mean\n")
    assert load_mapping(path).duplicates == "mean"
    path.write_bytes(b"duplicates: \xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        load_mapping(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_mapping(tmp_path / "nothing.yaml")
    path.write_text("")
    assert load_mapping(path) == ImportMapping()


@pytest.mark.parametrize(
    "entry", ["duplicates=first", "zero=", "part:a.csv=dev", "leave_out:a.csv=maybe", "decimal=dot", "time_unit="]
)
def test_unknown_words_of_options_are_refused(entry):
    with pytest.raises(InputError):
        parse_mapping([entry])


def _lines(n: int, line) -> str:
    return "".join(line(k) + "\n" for k in range(n))


#: name -> text of a file, and the layouts that it gives.
FILES = {
    "plain.csv": ("user_id;item_id;rating\n" + _lines(9, lambda k: f"u{k};i{k};{k % 5 + 1}"), {"rows"}),
    "matrix.csv": ("user,i1,i2,i3,i4\n" + _lines(30, lambda k: f"u{k},{k % 5 + 1},99,{(k + 1) % 5 + 1},3"), {"matrix"}),
    "lists.csv": ("user_id,history\n" + _lines(20, lambda k: f"u{k},i{k} i{k + 1} i{k + 2}"), {"histories"}),
    "behaviors.tsv": (
        _lines(30, lambda k: f"{k}\tU{k % 7}\t11/1{k % 5}/2019 9:00:0{k % 9} AM\tN{k} N{k + 1}\tN{k + 2}-0 N{k + 3}-1"),
        {"impressions"},
    ),
    "clicks.jsonl": (
        _lines(9, lambda k: f'{{"user_id":"u{k}","history":["a"],"history_labels":[1],"candidate":"c","label":1}}'),
        {"impressions"},
    ),
    "records.json": (
        '[{"instruction":"Will they like it?","input":"History: A, B. Candidate: C","output":"Yes"},'
        '{"instruction":"Will they like it?","input":"History: B. Candidate: D","output":"No"}]',
        {"instructions"},
    ),
    "facts.txt": ("head\trelation\ttail\n" + _lines(5, lambda k: f"m{k}\tmade_by\tp{k}"), {"knowledge"}),
    "tags.csv": ("userId,movieId,tag,timestamp\n" + _lines(20, lambda k: f"{k},{k},funny,{1500000000 + k}"), {"tags"}),
    "items.csv": (
        "item_id,title," + ",".join(f"f{i}" for i in range(16)) + "\n"
        + _lines(20, lambda k: f"i{k},T{k}," + ",".join(str(k * 0.1 + i) for i in range(16))),
        {"rows"},
    ),
    "grow.csv": (
        "user_id:token\titem_id_list:token_seq\titem_id:token\n" + _lines(20, lambda k: f"u{k}\ta b c\td"),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_mapping_of_a_guess_gives_the_guess_again(tmp_path, name):
    text, layouts = FILES[name]
    path = tmp_path / name
    path.write_text(text)

    def seen(guesses):
        return [(g.file, g.kind, g.layout, g.roles, g.origin, g.columns, g.fault) for g in guesses]

    guesses = guess_files([path])
    assert layouts is None or {guess.layout for guess in guesses} == layouts
    kept = read_mapping(dump_mapping(mapping_of(guesses)))
    assert seen(guess_files([path], kept.entries())) == seen(guesses)


def test_what_was_said_stands_in_the_mapping(tmp_path):
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text("user_id,item_id,rating,note\nu1,i1,5,x\nu2,i2,3,y\n")
    said = ["rating:a.csv=", "part:a.csv=train", "leave_out:b.csv=yes", "duplicates=last", "zero=unrated"]
    said += ["pseudonymise=yes", "mask:note=email+phone", "timezone=Asia/Tokyo"]
    mapping = mapping_of(guess_files(sorted(tmp_path.iterdir()), said), said)
    assert mapping.files["a.csv"].roles == {"rating": "", "user_id": "user_id", "item_id": "item_id"}
    assert mapping.files["a.csv"].part == "train"
    assert mapping.files["b.csv"] == FileMapping(leave_out=True)
    assert mapping.files["c.csv"].roles["rating"] == "rating"
    assert mapping.duplicates == "last"
    assert mapping.values == ValueMapping(zero="unrated", timezone="Asia/Tokyo")
    assert mapping.privacy.pseudonymise
    assert mapping.privacy.mask == {"note": ("email", "phone")}


def test_a_mapping_fits_files_of_other_names_by_their_columns():
    mapping = ImportMapping(
        files={
            "may.csv": FileMapping(kind="interactions", columns=("user", "item")),
            "items-*.csv": FileMapping(kind="items", columns=("item", "name")),
            "notes.csv": FileMapping(leave_out=True),
        }
    )
    found, unused = fitted(mapping, {"june.csv": ("item", "user"), "items-06.csv": ("x",)})
    assert set(found.files) == {"june.csv", "items-*.csv"}
    assert found.files["june.csv"].kind == "interactions"
    assert unused == ()
    # Two tables have these columns: nobody can say which one was meant.
    found, unused = fitted(mapping, {"a.csv": ("user", "item"), "b.csv": ("user", "item")})
    assert unused == ("may.csv", "items-*.csv")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train.csv", "train"), ("data/ml.test.inter", "test"), ("u1_VALID.tsv", "valid"), ("dev-set.csv", "valid"),
        ("training.csv", "train"), ("latest.csv", None), ("contest.csv", None), ("restrained.csv", None),
        ("test/ratings.csv", None),
    ],
)  # fmt: skip
def test_names_that_speak_of_a_part(name, part):
    assert part_hint(name) == part


def test_odd_columns_stand_in_no_mappings_way(tmp_path):
    """Names of columns are whatever a file says: several lines, very long, hundreds of them."""
    path = tmp_path / "odd.csv"
    (tmp_path / "two\nlines").mkdir()
    (tmp_path / "two\nlines" / "a\nb.csv").write_text("item_id,title\ni1,Apple\n")
    names = ["user_id", "item_id", "two\nlines", "x" * 2000, "a=b", "é: #", *(f"c{i}" for i in range(300))]
    row = ",".join(["u1", "i1", *("7" for _ in names[2:])])
    path.write_text(",".join(f'"{name}"' for name in names) + "\n" + row + "\n")
    places = [path, tmp_path / "two\nlines"]
    report = import_files(Workspace.open(tmp_path / "workspace"), places, "odd", ["title:odd.csv=two\nlines"])
    kept = load_mapping(tmp_path / "workspace" / "datasets" / "odd" / f"v{report.version}" / "mapping.yaml")
    assert list(kept.files["odd.csv"].columns) == names
    assert kept.files["odd.csv"].roles["title"] == "two\nlines"
    again = import_files(Workspace.open(tmp_path / "again"), places, "odd", kept.entries())
    assert again.fingerprint == report.fingerprint
