"""The page as people see and use it, in Chromium: `make test-browser`. Pictures of it go to $SCREENSHOTS, if set."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ray_learngene.store.store import Store
from ray_learngene.store.timings import Record, publish_record
from tests.pages.rows import Row, page_of, row, rows

pytestmark = pytest.mark.browser

SIZES = {"desktop": (1280, 860), "wide": (1700, 1000), "phone": (390, 844)}
ARMS = ("any-size", "scratch", "wave")
SWEEP = rows(ARMS, [16, 32, 48], [3, 6, 12], 2)
RUNNING = {
    "done": 12,
    "total": 27,
    "now": [{"arm": "wave", "size": "48×6", "seed": 1, "epoch": 2.5, "epochs": 5, "top1": 71.25}],
    "late": 180,
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or pytest.skip("no chromium: run `make test-browser`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Opened:
    """A page in a browser, with what its console and its network have seen."""

    def __init__(self, chromium: Any, file: Path, size: str, scheme: str) -> None:
        width, height = SIZES[size]
        self.context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page, self.file, self.picture = self.context.new_page(), file, f"{size}-{scheme}"
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def go(self, address: str = "") -> Opened:
        self.page.goto(f"{self.file.as_uri()}{address}")
        return self

    def text(self, selector: str) -> str:
        found: str = self.page.inner_text(selector)
        return found

    def address(self) -> str:
        found: str = self.page.evaluate("decodeURIComponent(location.hash)")
        return found

    def violations(self) -> list[str]:
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {[node['target'] for node in one['nodes'][:3]]}" for one in found]

    def save(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}-{self.picture}.png", full_page=True)


Opening = Callable[..., Opened]


@pytest.fixture
def opening(chromium: Any, tmp_path: Path) -> Iterator[Opening]:
    """Opens the page of rows."""
    opened: list[Opened] = []

    def open_page(found: list[Row], size: str = "desktop", scheme: str = "light", **others: Any) -> Opened:
        store = Store(str(tmp_path / "my store"))
        file = tmp_path / "my store/sweeps/photos/leaderboard.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page_of(store, found, **others))
        opened.append(Opened(chromium, file, size, scheme))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


def several_sweeps() -> list[Row]:
    """Three sweeps, one of which is of other images and was timed elsewhere."""
    other: Row = {"sweep": "cats", "data": "cats", "labels": "77", "latency_device": "Raspberry Pi 5"}
    return [
        *SWEEP,
        *rows(("any-size", "sws"), [32, 64], [3, 6], 2, sweep="more"),
        *rows(("sws",), [32], [4, 8], 1, **other),
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["one", "several", "single", "running", "empty"])
def test_a_page_has_no_violation_no_error_and_fits_its_window(
    opening: Opening, what: str, size: str, scheme: str
) -> None:
    found = {"one": SWEEP, "several": several_sweeps(), "single": [row()], "running": SWEEP[:9], "empty": []}[what]
    failed = [row(status="diverged", error="the loss is not finite at step 3: lower --lr")]
    others = {"unfinished": failed, "running": RUNNING} if what in ("running", "empty") else {}
    opened = opening(found, size, scheme, **others).go("#params=80k" if what == "one" else "")
    assert opened.said == [] and opened.asked == [opened.file.as_uri()]
    assert opened.violations() == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.page.is_visible("#running") == (what in ("running", "empty"))
    opened.save(what)


@pytest.mark.parametrize(("minutes", "stopped"), [(2, False), (10, True)])
def test_a_running_sweeps_page_that_is_old_says_that_it_may_have_stopped(
    opening: Opening, minutes: int, stopped: bool
) -> None:
    opened = opening(SWEEP[:9], running=RUNNING)
    opened.page.clock.set_fixed_time(datetime.now(UTC) + timedelta(minutes=minutes, seconds=5))
    said = opened.go().text("#progress")
    assert said.startswith("12 of 27 descendants done.") and ("the sweep may have stopped" in said) is stopped


def test_a_model_that_tuning_made_worse_is_inside_the_chart_with_its_mark_before(opening: Opening) -> None:
    opened = opening([row(top1=50.0, top1_untuned=70.0), row(width=48, top1=52.0, top1_untuned=51.0)]).go()
    top = {
        name: opened.page.evaluate(f"document.querySelector('{name}').getBBox().y") for name in (".frame", ".before")
    }
    assert top[".frame"] < top[".before"]


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_an_arm_far_below_all_others_does_not_squeeze_them(opening: Opening, size: str) -> None:
    good = rows(("any-size",), [32], [3, 5, 8, 10], 1)
    bad = [one | {"arm": "scratch", "top1": 12.0 + number, "top1_untuned": 9.0} for number, one in enumerate(good)]
    opened = opening([*good, *bad], size).go()
    assert opened.text("#cut") == "▾ 4 models below the chart, 12.00 to 15.00 %. The range “everything” shows them."
    heights = "[...document.querySelectorAll('#chart .marks.s0')].map((one) => one.getBBox().height)[0]"
    spread = opened.page.evaluate(heights)
    opened.save("far-below")
    opened.page.select_option("#axes label:has-text('range') select", "all")
    assert opened.text("#cut") == "" and spread > 3 * opened.page.evaluate(heights)


def test_planned_and_spent_seconds_lie_side_by_side(opening: Opening, tmp_path: Path) -> None:
    found = [row(depth=depth, device_seconds=10.0, fit_device_seconds=1.0, load=2.5) for depth in (3, 6)]
    kinds = [{**one, "count": 1, "seconds": 30.0, "device_seconds": 10.0} for one in found]
    plan = {"descendants": [*kinds, kinds[0] | {"depth": 9}], "device": "cpu AMD EPYC", "load": 1.5}
    Store(str(tmp_path / "my store")).write_text("sweeps/photos/plan.json", json.dumps(plan))
    opened = opening(found, "phone").go()
    said = opened.text("#costs")
    assert "30 s planned, 22 s spent on tuning, +10.0 % for what is trained." in said and "CPU seconds" in said
    cells = opened.page.locator("#costs tbody tr").all_inner_texts()
    assert [each.split("\t") for each in cells] == [
        *([size, "1 of 1", "10 s", "11 s", "+10.0 %", "2.5"] for size in ("sws 32×3", "sws 32×6")),
        ["sws 32×9", "0 of 1", "10 s", "–", "–", "–"],
    ]
    assert opened.violations() == []
    opened.save("planned-and-spent")


def test_the_most_accurate_mean_is_chosen_and_budgets_change_it(opening: Opening) -> None:
    opened = opening(SWEEP).go()
    assert opened.text("#model h2") == "wave 48×12" and opened.text(".score") == "93.25 %"
    assert "mean of 2 seeds: 93.00 to 93.50" in opened.text("#model")
    opened.page.fill("#budget-params input[type=text]", "100k")
    opened.page.press("#budget-params input[type=text]", "Enter")
    assert opened.text("#count") == "18 of 27 models within the budgets"
    assert opened.text("#model h2") == "wave 16×12"
    assert opened.address() == "#params=100000" and opened.page.query_selector(".shade")
    opened.page.locator("#budget-params input[type=range]").press("Home")
    assert opened.text("#count") == "3 of 27 models within the budgets"
    opened.page.fill("#budget-params input[type=text]", "many")
    opened.page.press("#budget-params input[type=text]", "Enter")
    assert opened.page.get_attribute("#budget-params input[type=text]", "aria-invalid") == "true"
    opened.page.click("#reset")
    assert opened.text("#count") == "27 models" and opened.address() == ""


def test_the_address_holds_what_was_chosen(opening: Opening) -> None:
    opened = opening(SWEEP).go()
    opened.page.click("#legend button:has-text('wave')")
    opened.page.select_option("#axes label:has-text('against') select", "latency")
    opened.page.locator("#chart").press("Home")
    words = opened.address()
    assert "off=wave" in words and "x=latency" in words and "model=photos/" in words
    before = opened.text("main")
    again = opening(SWEEP).go(words)
    assert again.text("main") == before and again.text("#model h2") in ("any-size 16×3", "scratch 16×3")


def test_keys_walk_along_the_models(opening: Opening) -> None:
    opened = opening(SWEEP).go()
    chart = opened.page.locator("#chart")
    chart.press("Home")
    names = [opened.text("#model h2")]
    for _ in range(26):
        chart.press("ArrowRight")
        names.append(opened.text("#model h2"))
    assert len(set(names)) == 27 and names[-1] == "wave 48×12"
    assert chart.get_attribute("aria-valuenow") == chart.get_attribute("aria-valuemax") == "27"
    assert (chart.get_attribute("aria-valuetext") or "").startswith("wave 48×12, 93.25 %, 332 k parameters")


def test_a_click_on_a_mark_chooses_it_and_a_row_does(opening: Opening) -> None:
    opened = opening(SWEEP).go("#table=all")
    ring = (
        "document.querySelector('.ring').getAttribute('cx') + ',' + document.querySelector('.ring').getAttribute('cy')"
    )
    opened.page.click("#table button:has-text('scratch 32×6')")
    assert opened.text("#model h2") == "scratch 32×6"
    x, y = map(float, opened.page.evaluate(ring).split(","))
    opened.page.locator("#chart").press("End")
    opened.page.locator("#chart").click(position={"x": x, "y": y})
    assert opened.text("#model h2") == "scratch 32×6"


def test_the_line_to_pull_the_model_is_copied(opening: Opening) -> None:
    opened = opening(SWEEP).go()
    opened.page.click("#model button:has-text('Copy')")
    store, name = opened.file.parents[2], "wave.photos-w48-d12-s1-0e29b09f"
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    assert copied == f"learngene pull descendants/photos/{name} --store '{store}'"
    opened.page.select_option("#model label:has-text('Get it by') select", "python")
    opened.page.click("#model button:has-text('Copy')")
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    assert f'lg.pull("{store}", "descendants/photos/{name}").load()' in copied


def test_sweeps_lie_side_by_side_and_other_images_apart(opening: Opening) -> None:
    opened = opening(several_sweeps()).go("#panels=sweep")
    assert opened.page.locator("#chart .panel").all_text_contents() == ["more", "photos"]
    opened.save("side-by-side")
    assert opened.violations() == []
    opened.page.click("#sweeps button:has-text('photos')")
    assert opened.text("#count") == "8 of 35 models shown"
    opened.page.select_option("#images select", "1")
    assert opened.text("#count") == "2 models" and opened.text("#model h2") == "sws 32×8"


def test_latencies_are_those_of_the_chosen_device(opening: Opening) -> None:
    found = [*SWEEP, *rows(("any-size",), [32], [4], 2, latency_device="Raspberry Pi 5")]
    opened = opening(found).go("#x=latency")
    assert "27 models" not in opened.text("#cut")
    opened.page.select_option("#axes label:has-text('latency on') select", "1")
    assert "27 models without this measurement." in opened.text("#cut")
    assert opened.page.get_attribute("#chart", "aria-valuemax") == "1"


def test_hostile_names_stay_text_in_the_browser(opening: Opening) -> None:
    name = '<img src=x onerror="document.title=1"></script><b>'
    bad = [row(arm=name, descendant=name, learngene=name, outside=name, data=name, latency_device=name)]
    opened = opening(bad, unfinished=[row(arm=name, status="failed", error=name)]).go()
    assert opened.page.title() == "photos: choose a model" and opened.said == []
    assert opened.page.locator("main b, main img").count() == 0 and name in opened.text("#model")


def test_ten_thousand_models_are_there_in_a_second(opening: Opening) -> None:
    found = rows([f"arm-{number}" for number in range(10)], range(16, 16 * 26, 16), range(3, 23), 2)
    assert len(found) == 10_000
    opened = opening([one | {"top1": 60 + one["top1"] / 4} for one in found]).go()
    ready = opened.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"10,000 models: {ready:.0f} ms until loaded, {opened.file.stat().st_size:,} bytes")
    assert opened.text("#count") == "5,000 models"
    assert opened.page.locator("#chart path").count() < 100
    opened.save("ten-thousand")


def test_a_page_works_from_a_server_too(opening: Opening) -> None:
    opened = opening(SWEEP)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(opened.file.parents[2]))
    handler.log_message = lambda *arguments: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened.page.goto(f"http://127.0.0.1:{server.server_port}/sweeps/photos/leaderboard.html")
        assert opened.said == [] and "--store STORE" in opened.text("#model pre")
        server.shutdown()


@pytest.mark.parametrize("address", ["#constructor=5", "#x=toString&y=valueOf", "#get=constructor"])
def test_an_address_of_no_settings_shows_the_page_without_them(opening: Opening, address: str) -> None:
    opened = opening(SWEEP).go(address)
    assert opened.said == [] and opened.text("#count") == "27 models" and opened.text("#model h2") == "wave 48×12"
    assert opened.text("#model pre").startswith("learngene pull ")


def test_a_budget_of_a_device_chooses_the_device_and_one_that_is_not_known_is_not_offered(
    opening: Opening, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "my store"))
    sizes = [
        {
            **{"name": f"d{depth}", "latency_ms": depth, "p90_ms": depth},
            "spec": {"width": 32, "depth": depth, "heads": 2, "image": 32, "patch": 4},
        }
        for depth in (3, 6, 12)
    ]
    facts = {"format": 1, "device": {"name": "pi"}, "runtime": "onnxruntime 1.32", "precision": "fp32", "threads": 1}
    publish_record(
        store, Record.model_validate({**facts, "batch": 1, "clock": "cpu", "sizes": sizes}), None, overwrite=False
    )
    budgets = dict.fromkeys(("latency@pi<=7ms,params<=1M", "latency@phone<=7ms", "params<=100k"), 1)
    store.write_text("sweeps/photos/sweep.json", json.dumps({"budgets": budgets}))
    opened = opening(SWEEP).go()
    assert opened.page.locator("#presets button").all_text_contents() == ["latency@pi<=7ms,params<=1M", "params<=100k"]
    opened.page.click("#presets button:has-text('latency@pi')")
    assert opened.text("#count") == "6 of 27 models within the budgets" and opened.text("#model h2") == "wave 32×6"
