"""The page's file: what it carries, how large it is, and that no name in a store becomes more than text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ray_learngene as lg
from ray_learngene.cli.main import main
from ray_learngene.pages.html import as_json
from ray_learngene.store.store import Store
from ray_learngene.store.sweeps import read_plan
from tests.fixtures.write_store import OLD_STORE
from tests.pages.rows import data_of, models_of, page_of, row, rows

HOSTILE = [
    '</script><script>alert("x")</script>',
    "<!--<script>",
    "{script}{data}",
    "\u2028\u2029&amp;<b onclick=x>",
    "'\"`${1}",
    "\ud800",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


class Tags(HTMLParser):
    """Counts the tags of a page and keeps the contents of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.addresses: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.inside = tag
        if tag in self.texts:
            self.texts[tag].append("")
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.texts:
            self.texts[self.inside][-1] += data


def policy_of(page: str) -> dict[str, str]:
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert found
    return dict(part.strip().split(" ", 1) for part in found[1].split(";"))


def test_a_page_carries_every_model_with_what_it_costs_in_all(store: Store) -> None:
    other_images = row(arm="scratch", data="/home/me/cats", labels="ef", learngene=None, latency_device="Pi 5")
    (one, other) = models_of(page := page_of(store, [row(), other_images]))
    data = data_of(page)
    assert (one["name"], one["size"], one["top1"], one["untuned"]) == (
        "sws.photos-w32-d06-s0-0e29b09f",
        "32×6",
        80,
        61.5,
    )
    assert (one["seconds"], one["own"], one["flops"]) == (222.0, 21.5, 4.11e12)
    assert data["sets"] == ["photos, 10 classes", "cats, 10 classes"] and (one["set"], other["set"]) == (0, 1)
    assert [text.split(",")[0] for text in data["devices"]] == ["cpu x86_64", "Pi 5"]
    assert (one["latency1"], other["latency0"]) == (None, None) and one["latency0"] == round(row()["latency"], 5)
    assert "/home/me" not in page and other["images"] == "cats"


def test_columns_that_older_rows_lack_are_unknown_and_numbers_that_are_none_too(store: Store) -> None:
    bare = {
        name: row()[name] for name in ("descendant", "sweep", "status", "arm", "width", "depth", "seed", "lr", "top1")
    }
    (model,) = models_of(page_of(store, [bare | {"params": float("nan"), "macs": 10**400, "memory": "x"}]))
    assert {model[name] for name in ("params", "macs", "memory", "latency", "seconds") if name in model} == {None}


def test_a_hundred_models_are_less_than_150_kb(store: Store) -> None:
    found = rows(["sws", "wave", "scratch", "any-size:widths=16-32@photos"], [16, 32, 48, 64, 96], range(4, 9), 1)
    assert len(found) == 100 and len(page_of(store, found).encode()) < 150_000


def test_a_page_runs_its_own_script_alone_and_loads_nothing(store: Store) -> None:
    page = page_of(store, [row()])
    tags, policy = Tags(page), policy_of(page)
    assert policy.keys() == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for kind, texts in (("script-src", tags.texts["script"][1:]), ("style-src", tags.texts["style"])):
        (text,) = texts
        assert policy[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert tags.addresses == ["data:,"]
    assert re.findall(r"https?:[^\"]*", page) == ["http://www.w3.org/2000/svg"]  # a namespace, which nothing loads


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(store: Store, name: str) -> None:
    plain = Tags(page_of(store, [row()])).seen
    changed = row(descendant=name, sweep=name, arm=name, data=name, learngene=name, outside=name, latency_device=name)
    page = page_of(store, [changed], unfinished=[changed | {"status": "failed", "error": name}])
    assert Tags(page).seen == plain
    assert models_of(page)[0]["arm"] == name


@settings(max_examples=50)
@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.lists(st.text())))
def test_json_in_a_page_is_what_it_was_and_has_no_tag(data: dict[str, object]) -> None:
    text = as_json(data)
    assert json.loads(text) == data and not set(text) & set("<>&\u2028\u2029")


def test_the_page_of_a_store_shows_its_sweeps_and_its_ancestry_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(OLD_STORE, tmp_path / "store")
    out = tmp_path / "pages" / "models.html"
    assert main(["page", "--store", str(tmp_path / "store"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"page: {out}\n"
    page = out.read_text()
    data, models = data_of(page), models_of(page)
    assert {model["sweep"] for model in models} == {"sizes"} and data["root"] == "../store/"
    assert all(
        (tmp_path / "store/descendants/sizes" / one["name"] / one["folder"] / "README.md").exists() for one in models
    )
    assert [(one["name"], one["set"]) for one in data["ancestries"]] == [("vit", 0)]
    assert str(tmp_path) not in page
    again = lg.page(tmp_path / "store", sweeps="sizes", out=tmp_path / "again.html")
    assert models_of(again.read_text()) == models


def test_a_page_names_its_store_as_a_browser_reads_an_address(tmp_path: Path) -> None:
    shutil.copytree(OLD_STORE, place := tmp_path / "50% of #1?")
    page = lg.page(str(place), out=tmp_path / "x.html").read_text()
    assert data_of(page)["root"] == "50%25%20of%20%231%3F/"


def test_a_sweep_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD_STORE, tmp_path / "store")
    out = tmp_path / "x.html"
    assert main(["page", "--store", str(tmp_path / "store"), "--sweeps", "size", "--out", str(out)]) == 2
    assert "--sweeps size: no descendant of that sweep" in (text := capsys.readouterr().err) and "sizes" in text
    assert not out.exists()


def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD_STORE, tmp_path / "store")
    (folder := tmp_path / "page.html").mkdir()
    for out, said in ((str(folder), str(folder)), ("s3://bucket/page.html", "a path on this machine")):
        assert main(["page", "--store", str(tmp_path / "store"), "--out", out]) == 2
        assert said in (text := capsys.readouterr().err) and text.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"store", "page.html"} and not list(folder.iterdir())


@pytest.mark.parametrize("plan", [b"\xff", b'{"descendants": [{"depths": 6}]}', b'{"descendants": [1]}'])
def test_a_damaged_plan_is_no_plan(plan: bytes, store: Store) -> None:
    store.objects.put("sweeps/s/plan.json", plan)
    assert read_plan(store, "s") is None
