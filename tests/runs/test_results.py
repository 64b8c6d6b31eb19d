"""Committed results are found, checked and tabled."""

import json
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
from slimnb.runs.results import run_ids
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
    path.write_text(json.dumps(record))
    with pytest.raises(SlimnbError, match=f"{code}"):
        store.records()


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


COMMITTED = [record for record in RunStore(committed=Path(__file__).parents[2] / "data/results").records()
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
