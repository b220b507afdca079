"""The page in a real browser: without a network, on a desk and a phone, light and dark, for eyes and for readers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.report.page.html import LARGEST
from evomerge.report.page.write import write_report
from tests.report.page.made import MadeRun
from tests.report.page.test_page import ATTACK, RUNS

pytestmark = pytest.mark.browser

SCREENS = {"desk": (1280, 900), "phone": (390, 844)}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium: the system's, or playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install evomerge[browser])")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, NAMES)), own if Path(own).exists() else None)
        if path is None:
            pytest.skip("needs Chromium (apt-get install chromium)")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page in a browser that has no network, with what went wrong."""

    def __init__(self, chromium: Any, file: Path, screen: str = "desk", scheme: str = "light") -> None:
        width, height = SCREENS[screen]
        self.problems: list[str] = []
        self._context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.page = self._context.new_page()
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._look)
        self.page.goto(file.resolve().as_uri())
        self.page.wait_for_selector("html[data-drawn]")

    def _look(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.problems.append(f"asks for {request.url}")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def wait_for(self, condition: str) -> None:
        """Waits until an expression is true. (playwright's own way needs `eval`, which the page does not allow.)"""
        for _ in range(200):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"is not so after 10 s: {condition}")

    def charts(self) -> tuple[int, int]:
        """How many places for charts there are, and how many are drawn."""
        drawn = self.page.locator(".plot").filter(has=self.page.locator("svg.main-svg"))
        return self.page.locator(".plot").count(), drawn.count()


@pytest.mark.parametrize("kind", RUNS)
def test_every_kind_of_run_is_drawn(kind: str, chromium: Any, tmp_path: Path) -> None:
    report = write_report(MadeRun(tmp_path, **RUNS[kind][0]).make())
    assert report.file.stat().st_size <= LARGEST
    with Opened(chromium, report.file) as opened:
        places, drawn = opened.charts()
        assert drawn == places > 0
        assert report.data["verdict"]["headline"] in opened.page.inner_text("header")
        assert opened.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_any_screen_shows_it_whole(screen: str, scheme: str, chromium: Any, tmp_path: Path) -> None:
    first = MadeRun(tmp_path, "first", kinds="ccbcpfcccc").make()
    report = write_report(first, compare=MadeRun(tmp_path, "second", winner=False).make())
    with Opened(chromium, report.file, screen, scheme) as opened:
        width = opened.page.evaluate("document.documentElement.scrollWidth")
        assert width == SCREENS[screen][0]  # nothing makes the page itself scroll sideways
        paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        shade = sum(int(part) for part in paper.removeprefix("rgb(").rstrip(")").split(","))
        assert (shade < 128) == (scheme == "dark")
        background = opened.page.evaluate("document.querySelector('.plot').layout.paper_bgcolor")
        assert background == opened.page.evaluate(
            "getComputedStyle(document.documentElement).getPropertyValue('--page').trim()"
        )
        opened.page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        opened.wait_for(f"document.querySelector('.plot').layout.paper_bgcolor !== {background!r}")
        assert opened.problems == []


def test_nothing_from_outside_acts(chromium: Any, tmp_path: Path) -> None:
    run = MadeRun(
        tmp_path,
        winner=False,
        slices=(ATTACK, f"{ATTACK}2", "<a href='javascript:window.hurt=1'>x</a>"),
        sources=(ATTACK, "two"),
        prompt=ATTACK,
        answer=ATTACK,
        reason=ATTACK,
        metric=ATTACK,
    ).make()
    report = write_report(run)
    with Opened(chromium, report.file) as opened:
        for fold in opened.page.locator("summary").all():
            fold.click()
        assert opened.page.evaluate("window.hurt") is None
        assert opened.page.locator("img").count() == 0
        assert opened.page.locator("a[href^='javascript']").count() == 0
        assert opened.problems == []


def test_a_menu_chooses_the_slices(chromium: Any, tmp_path: Path) -> None:
    report = write_report(MadeRun(tmp_path).make())
    with Opened(chromium, report.file) as opened:
        menus = opened.page.locator("select[data-chart=chart-pairs]")
        assert menus.count() == 2
        titles = "['xaxis', 'yaxis'].map((a) => document.getElementById('chart-pairs').layout[a].title.text)"
        assert [t.partition(" ")[0] for t in opened.page.evaluate(titles)] == ["shipping", "refunds"]
        menus.nth(1).select_option(label="catalog")
        assert [t.partition(" ")[0] for t in opened.page.evaluate(titles)] == ["shipping", "catalog"]
        assert opened.page.inner_text("#chart-pairs-says").startswith("On the front of these two slices: trial")


def test_the_recipe_can_be_copied(chromium: Any, tmp_path: Path) -> None:
    report = write_report(MadeRun(tmp_path).make())
    with Opened(chromium, report.file) as opened:
        opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened.page.locator("button[data-copy=recipe-yaml]").click()
        opened.wait_for("document.querySelector('[data-copy=recipe-yaml]').textContent === 'Copied'")
        assert opened.page.evaluate("navigator.clipboard.readText()") == report.data["recipe"]["yaml"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(scheme: str, chromium: Any, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core (evomerge[browser])")
    first = MadeRun(tmp_path, "first", kinds="ccbcpfcccc", winner=False).make()
    report = write_report(first, compare=MadeRun(tmp_path, "second").make())
    with Opened(chromium, report.file, "phone", scheme) as opened:
        for fold in opened.page.locator("summary").all():
            fold.click()
        found = axe.Axe().run(opened.page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_it_prints_on_white(chromium: Any, tmp_path: Path) -> None:
    report = write_report(MadeRun(tmp_path).make())
    with Opened(chromium, report.file, scheme="dark") as opened:
        opened.page.emulate_media(media="print", color_scheme="dark")
        assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not opened.page.locator("nav").is_visible()
        assert opened.page.pdf()[:5] == b"%PDF-"
