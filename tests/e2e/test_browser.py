"""MLflow's pages in a real browser: a person finds the search, its trials, and the picture of its front."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from tiny_case import NAME, started

EXPERIMENT = "autoq/tiny"  # of the model's file
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WAIT_MS = 30_000  # MLflow's pages are heavy, and a machine may be busy

# As root, and without a word to anybody: Debian's Chromium would look for updates and proxies.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Pixels of the colour of anchors, all trials of this search: 8 markers and a legend have hundreds.
COUNT_ORANGE = """picture => {
  const canvas = document.createElement('canvas');
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const context = canvas.getContext('2d');
  context.drawImage(picture, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    count += data[i] === 0xC7 && data[i + 1] === 0x77 && data[i + 2] === 0x00;
  return count;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        missing = "NO BROWSER, so nobody looks at MLflow's pages: apt-get install chromium"
        if os.environ.get("AUTOQ_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser that has never been here: a profile of its own."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def addresses(finished: Any) -> Iterator[dict[str, str]]:
    """What `autoq ui` prints: the address of all pages under "", that of each experiment under its name."""
    with started("ui", "--home", finished.home, "--port", "0") as ui:
        ui.wait_for("MLflow is at ")
        ui.wait_for(f"{EXPERIMENT}: ")
        found = [re.search(r"(\S+): (http\S+)$|is at (http\S+)", line) for line in ui.said]
        yield {one[1] or "": one[2] or one[3] for one in found if one}
        ui.process.terminate()
        ui.ended()


def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def run_cell(page: Page, name: str | re.Pattern[str]) -> Locator:
    """The cell of the table of runs that links to one; the path above the table has links too."""
    link = page.get_by_role("link", name=name, exact=isinstance(name, str))
    return page.get_by_role("gridcell").filter(has=link)


def trial_links(page: Page) -> Locator:
    return page.get_by_role("gridcell").get_by_role("link", name=re.compile(r"^t\d{3} "))


def trial_names(page: Page) -> list[str]:
    """Names of the trials' runs, from top to bottom."""
    placed = [(link.bounding_box(), link.inner_text()) for link in trial_links(page).all()]
    return [text for box, text in sorted(placed, key=lambda one: one[0]["y"] if one[0] else 0.0)]


def test_the_address_lists_the_experiment(page: Page, addresses: dict[str, str]) -> None:
    page.goto(addresses[""])
    expect(page.get_by_role("link", name=EXPERIMENT, exact=True)).to_be_visible(timeout=WAIT_MS)
    keep(page, "mlflow-experiments")


def test_the_experiment_opens_on_its_search_with_the_trials_nested_below(
    page: Page, addresses: dict[str, str]
) -> None:
    page.goto(addresses[EXPERIMENT])
    parent = run_cell(page, NAME)
    parent.wait_for()
    assert trial_names(page) == []
    parent.get_by_role("button").first.click()  # unfold
    run_cell(page, re.compile(r"^t007 ")).wait_for()
    names = trial_names(page)
    assert sorted(name[:4] for name in names) == [f"t00{number}" for number in range(8)]
    assert all(re.fullmatch(r"t\d{3} [+−]\d+\.\d pt \d+\.\dx [a-z0-9_+]+", name) for name in names)
    keep(page, "mlflow-trials")


def test_trials_sort_by_latency(page: Page, addresses: dict[str, str], finished: Any) -> None:
    page.goto(addresses[EXPERIMENT])
    run_cell(page, NAME).wait_for()
    page.get_by_test_id("sort-select-dropdown").click()
    page.get_by_text("latency_ms", exact=True).first.click()
    run_cell(page, re.compile(r"^t007 ")).wait_for()
    expect(page.get_by_test_id("sort-select-dropdown")).to_contain_text("latency_ms")
    # While the rows are fetched anew, the old ones can be there beside them.
    expect(trial_links(page)).to_have_count(8, timeout=WAIT_MS)
    keep(page, "mlflow-by-latency")
    front = {point["trial"]: point["latency_ms"] for point in finished.report["front"]}
    shown = [int(name[1:4]) for name in trial_names(page)]
    assert len(shown) == 8
    assert [number for number in shown if number in front] == sorted(front, key=front.__getitem__)[::-1]


def test_the_parent_run_shows_where_it_ran_and_the_points_of_its_front(
    page: Page, addresses: dict[str, str]
) -> None:
    page.goto(addresses[EXPERIMENT])
    run_cell(page, NAME).get_by_role("link", name=NAME, exact=True).click()
    expect(page.get_by_text("env.cpu.model")).to_be_visible(timeout=WAIT_MS)
    keep(page, "mlflow-search")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("pareto.png").first.click()
    picture = page.get_by_role("img", name="pareto.png")
    expect(picture).to_have_js_property("complete", True, timeout=WAIT_MS)
    keep(page, "mlflow-pareto")
    assert picture.evaluate(COUNT_ORANGE) > 200


def test_the_report_opens_offline_without_an_error(page: Page, finished: Any) -> None:
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.context.set_offline(True)
    page.goto((finished.home / "artifacts" / NAME / "report.html").as_uri())
    expect(page.locator("#title")).to_have_text(NAME)
    expect(page.locator("#front-table tr[data-trial]")).to_have_count(len(finished.report["front"]))
    page.locator("html[data-pictures=drawn]").wait_for(state="attached")
    page.locator("#plot-pareto .points path").first.wait_for()
    keep(page, "report")
    assert wrong == []
