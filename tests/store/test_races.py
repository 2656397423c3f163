"""Real processes that want one name at once."""

from pathlib import Path

import pytest

from ray_learngene.store.store import Store
from tests.store.folders import contents, make_folder
from tests.store.processes import CONTEXT, DONE, TOLD, start

PUBLISHERS = 3


def race(operation: str, uri: str, tmp_path: Path, same: bool) -> tuple[list[int | None], list[dict[str, bytes]]]:
    """Exit codes of processes that publish at once, and what each published."""
    if uri.startswith("memory"):
        pytest.skip("the memory of one process")
    Store(uri).check(write=True)
    barrier = CONTEXT.Barrier(PUBLISHERS)
    published = [
        {"model.safetensors": b"same" if same else f"publisher {n}".encode() * 1000, "config.json": b"{}"}
        for n in range(PUBLISHERS)
    ]
    folders = [make_folder(tmp_path / f"publisher-{n}", files) for n, files in enumerate(published)]
    processes = [start(operation, uri, folder, tmp_path, barrier=barrier) for folder in folders]
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes], published


@pytest.mark.parametrize("same", [False, True])
def test_exactly_one_process_wins_a_name_and_the_others_are_told(store_uri: str, tmp_path: Path, same: bool) -> None:
    codes, published = race("publish", store_uri, tmp_path, same)
    assert sorted(codes) == [DONE, *[TOLD] * (PUBLISHERS - 1)]
    store = Store(store_uri)
    assert contents(store.download("descendant", "s/a", tmp_path / "out")) == published[codes.index(DONE)]
    manifest = store.manifest("descendant", "s/a")
    assert set(store.objects.find("descendants")) == {
        "descendants/s/a/manifest.json",
        *(f"{manifest.base}/{entry.path}" for entry in manifest.files),
    }


def test_of_processes_that_overwrite_one_complete_artefact_remains(store_uri: str, tmp_path: Path) -> None:
    codes, published = race("overwrite", store_uri, tmp_path, same=False)
    assert codes == [DONE] * PUBLISHERS
    store = Store(store_uri)
    assert contents(store.download("descendant", "s/a", tmp_path / "out")) in published
    assert [entry.version for entry in store.entries()] == [store.manifest("descendant", "s/a").version]
