"""Committed results are found, checked and tabled."""

import json
import random
import shutil
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from refusals import refused
from small_runs import MACHINE, RECIPE, ROWS, begin, finish

from slimnb import plugins
from slimnb.errors import SlimnbError
from slimnb.papers.ds_net.detection import recipes as detection
from slimnb.runs.results import SEAL, read_committed, run_ids, seal
from slimnb.runs.store import RunStore, results_frame
from slimnb.train.recipe import Recipe


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs", tmp_path / "results")


def test_committed_result_is_found_without_the_local_run(store):
    run = finish(store, steps=7)
    events, path = run.events(), store.commit(run)
    shutil.rmtree(store.root)
    again = store.open(RECIPE, "code", "data")
    assert again.result() == {"rows": ROWS, "run_id": run.id}
    assert again.events() == events and again.weights() is None
    assert path.name == f"{run.id}.json" and path.stat().st_size < 4000


def test_committed_result_of_other_code_is_stale(store):
    run = finish(store)
    store.commit(run)
    changed = store.open(RECIPE, "newer code", "data")
    assert changed.result() == {"rows": ROWS, "run_id": run.id, "stale_code": True}
    assert changed.events() == [] and changed.record() is None
    assert store.open(RECIPE | {"seed": 1}, "code", "data").result() is None
    assert store.open(RECIPE, "code", "other data").result() is None


def test_commit_gives_the_same_bytes_and_thins(store, tmp_path):
    run = finish(store, steps=250, machine=MACHINE)
    first, second = store.commit(run), store.commit(run, tmp_path / "deep" / "er.json", points=3)
    text = first.read_bytes()
    assert store.commit(run).read_bytes() == text
    assert [e["step"] for e in json.loads(second.read_bytes())["history"]] == [0, 124, 249]
    record = json.loads(text)
    assert len(record["history"]) == 100 and record["machine"] == MACHINE
    assert not {"weights", "events", "host"} & record.keys()


def test_unfinished_run_is_not_committed(store):
    refused("StoreError", store.commit, begin(store, 1))
    assert not store.committed.exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: r.update(schema="slimnb.run/9"), "StoreError"),
        (lambda r: r["recipe"].update(lr=0.3), "StoreError"),
        (lambda r: r.update(code="edited"), "StoreError"),
        (lambda r: r.pop("result"), "StoreError"),
        (lambda r: r.pop("recipe"), "StoreError"),
    ],
)
def test_edited_committed_record_is_refused(store, change, code):
    path = store.commit(finish(store))
    record = json.loads(path.read_text())
    change(record)
    del record["sha256"]
    for text in (json.dumps(record).encode(), seal((json.dumps(record, indent=1) + "\n").encode())):  # one signs anew
        path.write_bytes(text)
        refused(code, store.records, words=path.name[:40])


RESULTS = Path(__file__).parents[2] / "data/results"


def test_a_flipped_bit_of_a_committed_record_is_one_line_that_names_the_file(tmp_path):
    rng, paths = random.Random(0), sorted(RESULTS.rglob("*.json"))
    seen = 0
    for path in rng.sample(paths, 20):
        data, copy = path.read_bytes(), tmp_path / path.name
        for _ in range(10):
            bit = rng.randrange(8 * len(data))
            copy.write_bytes(data[:bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1:])
            line = refused("StoreError", read_committed, tmp_path, words="checksum")
            refused("StoreError", read_committed, tmp_path, "another run")  # whatever one looks for
            seen += path.name[:40] in line and "Restore it" in line
        copy.unlink()
    assert seen == 20 * 10


@pytest.mark.parametrize("change", [
    lambda data: b"", lambda data: data[:-1], lambda data: data + b"\n", lambda data: data[: len(data) // 2],
    lambda data: data.replace(b"slimnb.run", b"slimmb.run"), lambda data: b"\xff\x00" * 40,
    lambda data: data.replace(b"\n", b"\r\n"), lambda data: data[: data.rindex(SEAL)] + b"\n}\n"])
def test_a_record_without_its_checksum_is_no_result(store, change):
    run = finish(store)
    path = store.commit(run)
    path.write_bytes(change(path.read_bytes()))
    shutil.rmtree(store.root)
    for call in (store.records, store.open(RECIPE, "code", "data").result, store.open(RECIPE, "other", "data").result):
        refused("StoreError", call, words="checksum")


def test_a_local_result_counts_with_its_checksum_and_in_its_own_folder(store):
    one, two = finish(store), store.open(RECIPE | {"seed": 1}, "code", "data")
    shutil.copytree(one.path, two.path)  # another run's result, checksum and all
    refused("StoreError", two.result, words="another run's")
    shutil.rmtree(two.path)
    (one.path / "result.json.sha256").unlink()
    refused("StoreError", one.result, words=".sha256 file is missing")


def test_other_json_beside_the_results_is_passed_over(store):
    run = finish(store)
    store.commit(run)
    (store.committed / "claims.json").write_text('{"claims": []}')
    (store.committed / "list.json").write_text("[1]")
    assert [record["run_id"] for record in store.records()] == [run.id]
    (store.committed / "broken.json").write_text('{"a": NaN}')
    assert store.open(RECIPE, "other code", "data").result()["stale_code"]
    with pytest.raises(SlimnbError, match=r"StoreError: results/broken\.json"):
        store.records()


def test_frame_has_a_row_per_run_and_subnet(store):
    for seed in (0, 1):
        store.commit(finish(store, recipe=RECIPE | {"seed": seed}))
    frame = results_frame(store.records())
    assert len(frame) == 4
    fields = ["run_id", "arm", "lr", "paper", "scale", "seed", "mult", "top1"]
    assert list(frame.columns) == fields  # lists such as widths are no columns
    means = frame.groupby("mult").top1.mean()
    assert means.to_dict() == {0.25: 0.5, 1.0: 0.75} and sorted(set(frame.seed)) == [0, 1]


def test_frame_takes_results_too():
    @dataclass(frozen=True)
    class Recipe:
        paper: str = "P"
        seed: int = 3
        arm: str = "all"

    result = types.SimpleNamespace(recipe=Recipe(), run_id="x", rows=[{"arm": "one", "top1": 0.5}])
    (row,) = results_frame([result]).to_dict("records")
    assert row == {"run_id": "x", "paper": "P", "seed": 3, "recipe_arm": "all", "arm": "one", "top1": 0.5}
    assert list(results_frame([]).columns) == ["run_id"]


COMMITTED = [record for record in RunStore(committed=RESULTS).records()
             if "bn" in record["recipe"]]  # of trainings: others are of what was measured once


def recipe_of(record):
    """The recipe that a committed record is of, as its paper's class reads it."""
    module = detection if "side" in record["recipe"] else plugins.find("papers", record["recipe"]["paper"])
    (kind,) = (each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Recipe)
               and each.__module__ == module.__name__)
    return kind(**{name: _tuples(value) for name, value in record["recipe"].items()})


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def test_committed_records_are_found_under_their_recipes_ids():
    assert len(COMMITTED) > 100
    for record in COMMITTED:
        recipe = recipe_of(record).to_json()
        assert run_ids(recipe, record["code"], record["data"])[1] == record["recipe_id"], record["run_id"]
