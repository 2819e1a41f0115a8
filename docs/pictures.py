"""Makes the pictures of the README from a running Studio: ``python docs/pictures.py URL RUN USER``.

They show sample data only. The browser is the system's Chromium, or the one that Playwright brings along.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).resolve().parent


def shoot(page: Page, url: str, name: str, awaited: str) -> None:
    """One page as ``docs/NAME.png``, once it shows the awaited words and its script has nothing left to do."""
    page.goto(url)
    page.get_by_text(awaited).wait_for(timeout=120_000)
    page.get_by_test_id("stStatusWidget").wait_for(state="detached", timeout=120_000)
    page.locator(".stSkeleton").first.wait_for(state="detached", timeout=120_000)
    page.wait_for_timeout(3000)
    page.screenshot(path=str(FOLDER / f"{name}.png"))


def main(url: str, run: str, user: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme, name, address, awaited in (
            ("light", "explain", f"explain?run={run}&user={user}", "The words the model read"),
            ("dark", "rankings", f"rankings?run={run}&user={user}", "Sequential item-kNN"),
        ):
            page = browser.new_context(viewport={"width": 1280, "height": 1040}, color_scheme=scheme).new_page()
            page.set_default_timeout(60_000)
            shoot(page, f"{url}/{address}", name, awaited)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
