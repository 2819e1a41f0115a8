"""The mapping document: what it says as corrections, there and back as YAML, and what is refused, with its line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_core.data._roles import ROLES, parse_mapping
from llmrec_core.data.mapping import FileMapping, ImportMapping, ValueMapping, dump_mapping, load_mapping, read_mapping
from llmrec_core.errors import DataError, InputError

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
        ('files: {"a\\nb": {kind: items}}', "control characters"),
        ("\x00", "not YAML"),
        ("x: " + "[" * 100_000, "nested or long"),
        ("x: [" + "1," * 50_000 + "]", "nested or long"),
        (" " * 300_000, "too large"),
    ],
    ids=range(21),
)
def test_what_cannot_be_meant_is_refused_with_its_place(text, words):
    began = time.monotonic()
    with pytest.raises(DataError) as refused:
        read_mapping(text, "m.yaml")
    assert words in str(refused.value)
    assert str(refused.value).startswith("m.yaml")
    assert time.monotonic() - began < 5


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
