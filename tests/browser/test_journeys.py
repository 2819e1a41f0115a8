"""Whole journeys by clicks in a real browser: the real MiniLM, a reload in mid-training, a kill -9 of the app."""

from __future__ import annotations

import csv
import io
import re
import time
import zipfile
from pathlib import Path

import openpyxl
import pytest
from playwright.sync_api import Locator, Page, expect

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(420)]

#: A run on two shared cores, the model's download included.
RUN_MS = 300_000


def key(page: Page, name: str) -> Locator:
    """The element of the widget with this key."""
    return page.locator(f".st-key-{name}")


def choose(page: Page, name: str, option: str) -> None:
    """Picks an option of a selectbox by typing it."""
    field = key(page, name).locator("input")
    field.click()
    field.fill(option)
    page.get_by_role("option").filter(has_text=option).first.click()


def set_number(page: Page, name: str, value: str) -> None:
    field = key(page, name).locator("input")
    field.fill(value)
    field.press("Enter")


def wait_idle(page: Page) -> None:
    """Until the script behind the page has nothing left to do."""
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=60_000)


def run_in_url(page: Page) -> str:
    page.wait_for_url(re.compile(r"[?&]run="))
    found = re.search(r"[?&]run=([\w-]+)", page.url)
    assert found is not None
    return found.group(1)


def wait_for_training(page: Page) -> None:
    expect(page.get_by_text(re.compile(r"Training · \d+ of \d+"))).to_be_visible(timeout=RUN_MS)


def wait_done(page: Page) -> None:
    """Until the run of the panel has ended; what it says when it failed is the message of this test."""
    ended = page.locator(
        ".st-key-run_state_done, .st-key-run_state_failed, .st-key-run_state_interrupted, .st-key-run_state_cancelled"
    )
    expect(ended).to_be_visible(timeout=RUN_MS)
    if not key(page, "run_state_done").is_visible():
        raise AssertionError(f"the run did not finish: {page.get_by_test_id('stAlert').all_inner_texts()}")


def no_faults(page: Page) -> None:
    """No error box and no stack trace stands on the page."""
    assert page.get_by_test_id("stException").count() == 0
    assert page.locator('[data-testid="stAlertContentError"]').all_inner_texts() == []


def test_the_whole_journey_on_sample_data(page, studio):
    page.goto(studio.url)
    key(page, "main_job").get_by_role("button").click()
    run_id = run_in_url(page)
    wait_for_training(page)

    page.reload()
    assert run_in_url(page) == run_id
    expect(page.get_by_text(run_id).first).to_be_visible()
    wait_done(page)

    page.get_by_role("link", name="See the rankings").click()
    expect(page.get_by_role("heading", name="Rankings")).to_be_visible()
    expect(page.get_by_text("Fine-tuned model")).to_be_visible(timeout=120_000)
    expect(page.get_by_text("Sequential item-kNN")).to_be_visible()
    expect(page.get_by_role("link", name="Why?")).to_have_count(10)
    assert run_id in page.url
    no_faults(page)

    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Metrics").click()
    expect(page.get_by_role("heading", name="Metrics", exact=True)).to_be_visible()
    expect(page.get_by_text("the best baseline").first).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    no_faults(page)

    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Explain").click()
    expect(page.get_by_text("Additivity gap")).to_be_visible(timeout=120_000)
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    expect(page.get_by_text("The words the model read")).to_be_visible()
    gap = page.get_by_test_id("stMetric").filter(has_text="Additivity gap").get_by_test_id("stMetricValue").inner_text()
    assert float(gap) < 1e-4
    no_faults(page)


def shop_export(folder: Path) -> Path:
    """A zip with ratings and a workbook of films, cut from the sample. No name tells which column is the rating, every
    tenth rating is a zero, and two rows are broken."""
    with open(ROOT / "sample_data" / "interactions.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    kept = set(sorted({row["user_id"] for row in rows})[:120])
    ratings = io.StringIO()
    writer = csv.writer(ratings, delimiter=";")
    writer.writerow(["userId", "movieId", "mark", "timestamp"])
    for number, row in enumerate(row for row in rows if row["user_id"] in kept):
        mark = 0 if number % 10 == 0 else row["rating"]
        writer.writerow([row["user_id"], row["item_id"], mark, row["timestamp"]])
    writer.writerow(["u001", "", "3", "1700000000"])
    writer.writerow(["u001", "i001", "good", "1700000000"])
    book, workbook = openpyxl.Workbook(), io.BytesIO()
    book.active.title = "Films"
    book.active.append(["Films of the shop"])
    book.active.append(["movieId", "title", "genres"])
    with open(ROOT / "sample_data" / "items.csv", encoding="utf-8", newline="") as stream:
        for item in csv.DictReader(stream):
            book.active.append([item["item_id"], item["title"], item["category"]])
    book.save(workbook)
    path = folder / "shop.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ratings.csv", ratings.getvalue())
        archive.writestr("films.xlsx", workbook.getvalue())
    return path


def test_an_uploaded_archive_and_a_killed_app(page, studio, tmp_path):
    page.goto(f"{studio.url}/data")
    page.locator('input[type="file"]').first.set_input_files(str(shop_export(tmp_path)))
    # Nothing in its name says that "mark" is a rating: a person has to.
    role = page.get_by_role("combobox", name="Rating", exact=True)
    expect(role).to_have_value("(none)", timeout=60_000)
    expect(page.get_by_text("shop.zip/films.xlsx/Films")).to_be_visible()
    role.click()
    role.fill("mark")
    page.get_by_role("option", name="mark").first.click()
    expect(role).to_have_value("mark")
    # And nobody but a person knows what a zero means.
    imports = key(page, "import_button").get_by_role("button")
    expect(page.get_by_text("Still open: what a rating of 0 means")).to_be_visible(timeout=60_000)
    expect(imports).to_be_disabled()
    page.get_by_text("no rating: the person used it without rating it").click()
    expect(page.get_by_text("Still open")).to_have_count(0)
    set_number(page, "import_name", "films")
    wait_idle(page)
    with page.expect_download() as mapping:
        key(page, "mapping_download").get_by_role("button").click()
    assert "mark" in mapping.value.path().read_text(encoding="utf-8")
    imports.click()
    expect(page.get_by_text("2 rows were refused").first).to_be_visible(timeout=60_000)
    with page.expect_download() as refused:
        key(page, "rejects_csv_report").get_by_role("button").click()
    reasons = refused.value.path().read_text(encoding="utf-8")
    assert "'good' is not a number" in reasons
    assert "item_id is empty" in reasons
    expect(page.get_by_text("1 to 5").first).to_be_visible()
    no_faults(page)

    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Fine-tune").click()
    choose(page, "ft_dataset", "films")
    choose(page, "ft_preset", "Quick look")
    wait_idle(page)
    set_number(page, "ft-quick-training-max_samples", "600")
    set_number(page, "ft-quick-evaluation-max_users", "40")
    wait_idle(page)
    key(page, "ft_submit").get_by_role("button").click()
    run_id = run_in_url(page)
    wait_for_training(page)

    studio.kill()
    time.sleep(1)
    studio.start()
    page.goto(f"{studio.url}/finetune?run={run_id}")
    expect(page.get_by_role("heading", name="Fine-tune")).to_be_visible()
    expect(page.get_by_text(run_id).first).to_be_visible()
    wait_done(page)
    page.get_by_role("link", name="Rankings").last.click()
    expect(page.get_by_text("Fine-tuned model")).to_be_visible(timeout=120_000)
    no_faults(page)
