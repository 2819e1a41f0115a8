"""Starters and saved templates: versions are never overwritten, names are checked, starters stay."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llmrec_core.errors import InputError, TemplateError
from llmrec_core.prompts import STARTERS, TemplateStore, check_template, template_source
from llmrec_core.specs import PromptSpec
from llmrec_core.workspace import Workspace


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(Workspace.open(tmp_path / "ws"))


def test_the_starters_compile() -> None:
    assert list(STARTERS) == ["question", "text", "list", "multi-level", "yes-no", "stars", "choice", "next"]
    for starter in STARTERS.values():
        check_template(starter.source)
        assert starter.title
        assert starter.description


def test_versions_grow_and_stay(store: TemplateStore) -> None:
    assert store.save("mine", "{{ candidate.title }}", title="Mine", description="short") == 1
    assert store.save("mine", "{{ candidate.title }}") == 1
    assert store.save("mine", "{{ candidate.title }}\nagain 雨") == 2
    assert store.get("mine") == "{{ candidate.title }}\nagain 雨"
    assert store.get("mine", 1) == "{{ candidate.title }}"
    first, second = store.versions("mine")
    assert (first.version, first.title, first.description) == (1, "Mine", "short")
    assert second.version == 2
    assert second.created >= first.created > "2020"
    assert store.diff("mine", 1, 2).splitlines() == [
        "--- mine v1", "+++ mine v2", "@@ -1 +1,2 @@", " {{ candidate.title }}", "+again 雨",
    ]  # fmt: skip
    assert [t.name for t in store.list()] == [*STARTERS, "mine"]
    store.delete("mine")
    assert [t.name for t in store.list()] == list(STARTERS)
    with pytest.raises(TemplateError, match="no template 'mine'; known are question, text, list, multi-level"):
        store.get("mine")


@pytest.mark.parametrize("name", ["question", "Question", "multi-level"])
def test_starters_cannot_be_changed(store: TemplateStore, name: str) -> None:
    with pytest.raises(InputError, match="starter"):
        store.save(name, "x")
    with pytest.raises(InputError, match="starter"):
        store.delete(name)
    assert store.versions("question")[0].starter


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "con", "x" * 65, "a\x00b", "C:\\x"])
def test_unsafe_names_touch_nothing(store: TemplateStore, tmp_path: Path, name: str) -> None:
    for act in (lambda: store.save(name, "x"), lambda: store.get(name), lambda: store.delete(name)):
        with pytest.raises(InputError):
            act()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_bad_templates_are_not_saved(store: TemplateStore, tmp_path: Path) -> None:
    for source in ("{{ nobody }}", "{{ ''.__class__ }}", "{% if %}", "x" * 20_001):
        with pytest.raises(TemplateError):
            store.save("mine", source)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_links_are_not_followed(store: TemplateStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "v1.jinja").write_text("secret", encoding="utf-8")
    (tmp_path / "ws" / "templates").mkdir(exist_ok=True)
    (tmp_path / "ws" / "templates" / "linked").symlink_to(outside)
    assert "linked" not in [t.name for t in store.list()]
    with pytest.raises(InputError, match="link"):
        store.get("linked")


def test_saves_at_once_lose_nothing(store: TemplateStore) -> None:
    sources = [f"number {i}" for i in range(12)]
    found: list[int] = []
    threads = [threading.Thread(target=lambda s=s: found.append(store.save("many", s))) for s in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 13))
    assert sorted(v.source for v in store.versions("many")) == sorted(sources)


def test_damaged_files(store: TemplateStore, tmp_path: Path) -> None:
    store.save("mine", "one")
    folder = tmp_path / "ws" / "templates" / "mine"
    (folder / "v1.json").write_text("[", encoding="utf-8")
    assert store.load("mine").title == "mine"
    (folder / "v1.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match=r"v1\.jinja"):
        store.get("mine")


def test_where_a_spec_finds_its_text(store: TemplateStore) -> None:
    store.save("mine", "saved")
    assert template_source(PromptSpec(template="mine", source="own")) == "own"
    assert template_source(PromptSpec(template="list")) == STARTERS["list"].source
    assert template_source(PromptSpec(template="mine"), store) == "saved"
    with pytest.raises(TemplateError, match="'mine'; known are question"):
        template_source(PromptSpec(template="mine"))
    with pytest.raises(TemplateError, match="next, mine"):
        template_source(PromptSpec(template="other"), store)
