"""What is seen of long work: bars on a terminal, few and plain lines elsewhere, nothing unasked for from Python."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ray_learngene import progress
from ray_learngene.models.specs import Spec
from ray_learngene.progress import Progress, TrainingProgress, counted, duration_text, rate_text
from ray_learngene.sweeps.arms import Arm
from ray_learngene.sweeps.status import SweepStatus
from ray_learngene.sweeps.trial import Trial

WORK = """
from ray_learngene import progress
from ray_learngene.cli.output import shown_log
import logging

progress.BAR_SECONDS = 0
with shown_log():
    with progress.Progress("convert", 40, "images") as work:
        for number in range(40):
            work.advance()
            if number == 20:
                logging.getLogger("ray_learngene.x").info("a message")
                logging.getLogger("ray_learngene.x").warning("a warning")
print("the end")
"""


def test_a_terminal_shows_a_bar_and_messages_above_it(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while chunk := os.read(master, 4096):
                shown += chunk
        except OSError:  # the other end is closed
            pass
    os.close(master)
    assert process.returncode == 0
    text = shown.decode()
    assert "\x1b[" in text and "convert" in text and "images/s" in text
    assert "a message\r\n" in text and "a warning\r\n" in text
    assert text.endswith("the end\r\n")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again


def test_a_file_gets_lines_without_control_characters() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout == "a message\nthe end\n"
    assert done.stderr == "a warning\n"


def test_lines_come_every_so_often_with_the_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, "ray_learngene"), Progress("convert", 1200, "images") as work:
        for _ in range(600):
            clock[0] += 0.125
            work.advance()
    assert caplog.messages[0] == "convert: 80 of 1,200 images   8 images/s   2 min 20 s left"
    assert len(caplog.messages) == 7


def test_a_training_says_its_duration_once_and_its_epochs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    report = TrainingProgress("photos")
    of = {"epochs": 2, "total_steps": 40}
    with caplog.at_level(logging.INFO, "ray_learngene"):
        for step in range(1, 41):
            clock[0] += 1
            metrics = {"step": step, "epoch": step / 20, **of}
            if step % 20 == 0:
                metrics |= {"loss": 1.0, "lr": 1e-3, "top1": 50.0, "images_per_second": 32.0}
            report(metrics)
    assert caplog.messages == [
        "photos: about 34 s to go",
        "epoch   1.00 / 2   loss 1.0000   lr 1.00e-03   top-1  50.00 %   32 images/s   20 s left",
        "epoch   2.00 / 2   loss 1.0000   lr 1.00e-03   top-1  50.00 %   32 images/s",
    ]


def test_the_first_of_a_few_long_works_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    work = Progress("bench", 3, "distillations")
    for done, seconds in [(0, 60), (0, 60), (1, 3600)]:
        clock[0] += seconds
        work.at(done)
    assert work.left() == "2 h 0 min"


def test_the_time_of_a_restart_is_not_in_the_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    report = TrainingProgress("photos")
    with caplog.at_level(logging.INFO, "ray_learngene"):
        for step, seconds, more in [(10, 1, {}), (12, 300, {"continued": True}), (20, 8, {})]:
            clock[0] += seconds
            report({"step": step, "epoch": step / 20, "epochs": 2, "total_steps": 40, **more})
    assert caplog.messages == ["photos: about 20 s to go"]


def test_the_start_of_a_training_is_not_in_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    work = Progress("photos", 100, "steps", warms_up=True)
    for step, seconds in [(0, 60), (0, 60), (1, 30), (3, 2)]:  # two evaluations, a slow first step, two ordinary ones
        clock[0] += seconds
        work.at(step)
    assert work.rate() == 1 and work.left() == ""  # two seconds say nothing yet
    clock[0] += 7
    work.at(10)
    assert work.left() == "1 min 30 s"


def test_a_sweep_expects_the_time_of_the_work_that_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial counts by its epochs, and not by what an earlier run did of it."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    sizes = [Spec(width=48, depth=depth, heads=3, image=8, patch=2, classes=10) for depth in (1, 2, 3)]
    one, long, ended = (Trial(Arm.parse("sws", "photos"), size, 0, 1e-3) for size in sizes)
    work = {one: 100.0, long: 900.0, ended: 500.0}
    status = SweepStatus("sizes", work.__getitem__, [*work])
    of = {"epochs": 1, "total_steps": 100}
    clock[0] = 30
    status.end(ended)
    status.report(one, {"step": 0, "epoch": 0, **of})
    status.report(long, {"step": 50, "epoch": 0.5, **of})  # from its checkpoint
    with caplog.at_level(logging.INFO, "ray_learngene"):
        for step in range(1, 21):
            clock[0] += 1
            status.report(one, {"step": 5 * step, "epoch": step / 20, **of})
    assert "1 min 30 s left" in caplog.messages[-1]  # 450 at 5 a second


def test_from_python_nothing_is_seen_that_was_not_asked_for() -> None:
    code = "import logging, sys; from ray_learngene import progress; progress.LINE_SECONDS = 0; "
    work = "work = progress.Progress('convert', 2, 'images'); work.advance(); work.advance(); work.end()"
    asked = "logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout); "
    quiet, heard = (
        subprocess.run([sys.executable, "-c", code + more + work], capture_output=True, text=True, check=True)
        for more in ("", asked)
    )
    assert quiet.stdout + quiet.stderr == ""
    assert heard.stdout.count("convert: ") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (1500, "25 min"), (7300, "2 h 2 min"), (3e5, "3 days")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "epoch", "1 epoch"), (1200, "image", "1,200 images"), (0, "class", "0 classes"), (2, "batch", "2 batches")],
)
def test_things_are_counted_in_words(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.5, "1,234 x/s"), (0.5, "30 x/min"), (0.001, "4 x/h"), (1e-5, "0.9 x/day")]
)
def test_slow_rates_are_of_longer_times(rate: float, text: str) -> None:
    assert rate_text(rate, "x") == text
