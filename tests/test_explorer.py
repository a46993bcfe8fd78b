"""The explorer page: its numbers are those of the records, and it can be used."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import records as book

from survey_code.lab import compare, load_results
from survey_code.lab.results import Result

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_tools"))

from explorer import describe_all, write_explorer

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, PROGRAMS)), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("book")
    write_explorer(place / "explorer")
    # The icon is the book's.
    icon = Path("book/_static/favicon.svg")
    (place / "_static").mkdir()
    shutil.copy(Path(__file__).parents[1] / icon, place / "_static")
    return place / "explorer"


def read_data(folder):
    text = (folder / "data.js").read_text(encoding="utf-8")
    start = "window.EXPLORER = "
    assert text.startswith(start)
    return json.loads(text.removeprefix(start).rstrip().rstrip(";"))


def test_every_number_names_its_line_of_evidence(folder):
    data = read_data(folder)
    assert [one["name"] for one in data["contests"]] == list(book.FINISHED)
    for contest in data["contests"]:
        lines = (book.RESULTS.parents[1] / contest["file"]).read_text().splitlines()
        shown = 0
        for method in contest["methods"]:
            for point in method["points"]:
                for run in point["runs"]:
                    result = Result.from_json(lines[run["line"] - 1])
                    assert (result.key, result.seed) == (method["key"], run["seed"])
                    for metric, value in run["values"].items():
                        assert value == pytest.approx(result.test[metric], abs=1e-6)
                    shown += 1
        tested = [line for line in map(Result.from_json, lines) if not line.failure]
        assert shown == len(tested)


def test_it_loads_nothing_from_elsewhere(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "//" not in text.replace("<!DOCTYPE html>", "")
    assert (folder / "uPlot.LICENSE").read_text().startswith("The MIT License")
    assert describe_all()["families"]


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with sync.sync_playwright() as program:
        started = program.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser, folder, request):
    width, height = getattr(request, "param", (1400, 900))
    context = browser.new_context(
        viewport={"width": width, "height": height}, offline=True
    )
    opened = context.new_page()
    complaints = []
    opened.on("console", lambda said: complaints.append(said.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(f"{(folder / 'index.html').as_uri()}#data=frappe&ratio=10")
    opened.wait_for_selector("#rows tr")
    yield opened
    context.close()
    assert not complaints


def names(page):
    return page.locator("#rows button").all_inner_texts()


def test_it_ranks_as_the_package_does(page):
    ranked = compare(load_results(book.RESULTS / "frappe_runs.jsonl"), 10)
    ranked = ranked.drop("full")
    assert sorted(names(page)) == sorted(ranked.index)
    shown = page.locator("#rows td:nth-child(3)").all_inner_texts()
    assert shown == [f"{mean:.4f}" for mean in ranked["mean"]]


def test_filters_leave_out_what_needs_a_search(page):
    before = names(page)
    page.get_by_label("search, then retrain").uncheck()
    page.get_by_label("during training").uncheck()
    left = names(page)
    assert "pq" in left and "bet" not in left and len(left) < len(before)
    assert "stages=" in page.url
    page.reload()
    page.wait_for_selector("#rows tr")
    assert names(page) == left
    page.get_by_role("button", name="Show all").click()
    assert names(page) == before


def test_a_pointer_on_the_plot_ranks_at_its_ratio(page):
    title = page.inner_text("#ranking-title")
    box = page.locator("#plot .u-over").bounding_box()
    page.mouse.move(box["x"] + 0.85 * box["width"], box["y"] + 30)
    page.wait_for_function(
        "before => document.querySelector('#ranking-title').textContent !== before",
        arg=title,
    )
    assert page.inner_text("#ratio-shown") in page.inner_text("#ranking-title")


def test_a_keyboard_reaches_the_evidence(page):
    page.locator("#rows button").first.focus()
    page.keyboard.press("ArrowDown")
    second = names(page)[1]
    page.keyboard.press("Enter")
    assert page.inner_text("#evidence-title") == f"Evidence: {second}"
    said = page.inner_text("#lines")
    assert "book/results/frappe_runs.jsonl:" in said and "python book/records" in said


def test_columns_sort(page):
    page.get_by_role("button", name="rows seen").click()
    seen = [
        float(text.split()[0])
        for text in page.locator("#rows td:nth-child(7)").all_inner_texts()
    ]
    assert seen == sorted(seen)


@pytest.mark.parametrize("page", [(390, 844)], indirect=True)
def test_it_fits_a_telephone(page):
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
