"""Messages and metrics of a worker on real Ray reach the driver, in order, down to the last one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import ray

from ray_learngene.cluster.driver import Driver, from_workers

pytestmark = pytest.mark.usefixtures("connected")


@ray.remote
def work(driver: Driver, count: int) -> None:
    log = logging.getLogger("ray_learngene.somewhere")
    with driver.connected():
        for number in range(count):
            driver.report({"step": number})
            log.info("step %d", number)
        log.debug("not for the driver")
        log.warning("the %s warning", "last")
    log.info("after the end")


def test_everything_arrives_in_order(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    with caplog.at_level(logging.INFO, "ray_learngene"), from_workers(seen.append) as driver:
        ray.get(work.remote(driver, 50))
    assert seen == [{"step": number} for number in range(50)]
    assert caplog.messages == [*(f"step {number}" for number in range(50)), "the last warning"]
    assert [record.name for record in caplog.records] == ["ray_learngene.somewhere"] * 51


def test_a_driver_that_asks_for_nothing_hears_warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ray_learngene"), from_workers(print) as driver:
        ray.get(work.remote(driver, 0))
    assert caplog.messages == ["the last warning"]
