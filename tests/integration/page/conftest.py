"""Debian's Chromium, driven by Playwright, and a page to open in it."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: extra dev")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def room(tmp_path):
    from showroom import Showroom

    made = Showroom(tmp_path)
    yield made
    made.close()


class Problems(list):
    """What a page complains about: errors of scripts, and content that its policy refuses."""

    def watch(self, page):
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("console", lambda said: self.append(said.text) if said.type in ("error", "warning") else None)
        page.on("requestfailed", lambda request: self.append(request.url))


@pytest.fixture
def open_page(browser):
    """`open_page(url, width, scheme)` opens a page; one that has complained fails its test."""
    contexts, problems = [], Problems()

    def opened(url, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        problems.watch(page)
        page.goto(url)
        return page

    opened.problems = problems
    yield opened
    for context in contexts:
        context.close()
    assert problems == []
