"""python -m benchmarks.page_open [--rounds 9] [--quick] [--out FILE.json]

What it takes to open a page in Chromium (`make test-browser` installs it): CPU seconds of the page's own thread, and
milliseconds by the clock until it is loaded, at 1280 x 860. Pages of different numbers of models take turns. Goals: a
hundred models below 150 kB, ten thousand open in a second.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import arguments, in_turn, machine, publish
from ray_learngene.store.store import Store
from tests.pages.rows import Row, page_of, rows

ARMS = [f"arm-{number}" for number in range(10)]
PAGES: dict[str, list[Row]] = {
    "100": rows(ARMS, [16, 32], range(3, 8), 1),
    "10,000, of one seed": rows(ARMS, range(16, 16 * 26, 16), range(3, 43), 1),
    "10,000, of two seeds": rows(ARMS, range(16, 16 * 26, 16), range(3, 23), 2),
}


def main() -> None:
    from playwright.sync_api import sync_playwright

    args = arguments(__doc__, lambda parser: parser.add_argument("--rounds", type=int, default=9))
    facts = machine()
    path = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        clock: dict[str, list[float]] = {name: [] for name in PAGES}
        files = {name: Path(folder, f"{number}.html") for number, name in enumerate(PAGES)}
        for name, file in files.items():
            file.write_text(page_of(Store(f"{folder}/store"), PAGES[name]))
        sides = {name: _opening(browser, file, clock[name]) for name, file in files.items()}
        seconds = in_turn(sides, 1 if args.quick else args.rounds)
        publish(
            "page_open",
            args,
            facts | {"chromium": browser.version},
            [
                {
                    "models": name,
                    "kB": round(file.stat().st_size / 1000),
                    "CPU of its thread (s)": median(seconds[name]),
                    "loaded (ms)": median(clock[name]),
                    "load": round(os.getloadavg()[0], 1),
                    "raw": {"seconds": seconds[name], "milliseconds": clock[name]},
                }
                for name, file in files.items()
            ],
        )
        browser.close()


def _opening(browser: Any, file: Path, clock: list[float]) -> Callable[[], float]:
    def opened() -> float:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(file.as_uri())
        clock.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        page.close()
        return float(metrics["TaskDuration"])

    return opened


if __name__ == "__main__":
    main()
