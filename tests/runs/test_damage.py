"""Damaged, foreign and strange files in a run's folder: a step back or a refusal, never a loss."""

import collections
import os
import random
import shutil

import pytest
import torch
from small_runs import RECIPE, ROWS, begin, finish, refused, snapshot, tensors

from slimnb.errors import SlimnbError
from slimnb.runs import checkpoint, files
from slimnb.runs.store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs", tmp_path / "results")


def newest(run):
    return sorted(run.path.glob("ck-*.safetensors"))[-1]


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first bit": lambda path: flip(path, 0),
    "last bit": lambda path: flip(path, -1),
    "header bit": lambda path: flip(path, 40),
    "no checksum": lambda path: files.sidecar(path).unlink(),
    "empty checksum": lambda path: files.sidecar(path).write_bytes(b""),
    "pickle": lambda path: files.write_checked(path, b"\x80\x04}\x94.", files.Failpoint(), "x"),
    "older one under its name": lambda path: rename_older(path),
    "header without events": lambda path: rewrite(path, lambda h: h.pop("events")),
    "header without meta": lambda path: rewrite(path, lambda h: h.pop("meta")),
    "header with odd events": lambda path: rewrite(path, lambda h: h.update(events={"bytes": "x"})),
}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rename_older(path):
    older = path.with_name("ck-000002.safetensors")
    files.write_checked(path, older.read_bytes(), files.Failpoint(), "x")


def rewrite(path, change, content=None):
    """Sign a checkpoint again after changing its header (or tensors)."""
    found, header = checkpoint.unpack(path.read_bytes())
    change(header)
    data = checkpoint.pack(content or found, header)
    files.write_checked(path, data, files.Failpoint(), "x")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_generation_falls_back_and_is_kept(store, capsys, damage):
    run = begin(store, 3)
    path = newest(run)
    damage(path)
    bad = path.read_bytes()
    with run.lock():
        found, meta = run.load()
        said = capsys.readouterr().out
        assert meta["step"] == 2 and torch.equal(found["w"], tensors(2)["w"])
        assert said.count("\n") == 1 and "ck-000003" in said and "step 2" in said
        assert path.with_name(path.name + ".bad").read_bytes() == bad
        run.log({"step": 3})
        run.save(3, tensors(3), {})
    assert newest(run).name == "ck-000004.safetensors"  # the number of the bad one is not used again
    assert [e["step"] for e in run.events()] == [1, 2, 3]
    with run.lock():
        assert run.load()[1]["step"] == 3 and not capsys.readouterr().out


def test_file_times_decide_nothing(store):
    run = begin(store, 3)
    os.utime(newest(run), (0, 0))  # a clock that jumped back
    with run.lock():
        assert run.load()[1]["step"] == 3
        run.save(4, tensors(4), {})
    names = sorted(path.name for path in run.path.glob("ck-*.safetensors"))
    assert names == ["ck-000003.safetensors", "ck-000004.safetensors"]


def test_all_generations_damaged_is_refused_with_reasons(store):
    run = begin(store, 3)
    newest(run).write_bytes(b"")
    flip(run.path / "ck-000002.safetensors", 50)
    line = refused(run, "StoreError")
    assert "ck-000003 empty" in line and "ck-000002 its SHA-256 differs" in line


def test_lost_events_damage_the_generations_that_hold_them(store, capsys):
    run = begin(store, 3)
    path = run.path / "events.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with run.lock():
        assert run.load()[1]["step"] == 2
    assert "events.jsonl is cut or changed" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["first bit", "middle bit", "empty", "gone", "pickle"])
def test_damaged_events_cost_no_state_and_leave_a_gap_that_is_said(store, capsys, how):
    run = begin(store, 3)
    path = run.path / "events.jsonl"
    if how == "gone":
        path.unlink()
    else:
        {"middle bit": lambda p: flip(p, 4), "pickle": lambda p: p.write_bytes(b"\x80\x04}\x94.")}.get(
            how, DAMAGES.get(how))(path)
    bad = path.read_bytes() if path.exists() else None
    for _ in range(2):  # and again, as if it had been killed before the next checkpoint
        with run.lock():
            found, meta = run.load()
            assert meta == {"step": 3, "best": 1.5} and torch.equal(found["w"], tensors(3)["w"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "events.jsonl: cut or changed" in said and "step 3" in said
    kept = path.with_name("events.jsonl.bad")
    assert (kept.read_bytes() if kept.exists() else None) == bad
    with run.lock():
        run.load()
        run.log({"step": 4})
        run.finish({"rows": ROWS}, tensors(4))
    assert run.events() == [{"lost": "events", "until": 3}, {"step": 4}]


@pytest.mark.parametrize("whole", ["ck-000002", "ck-000003"])
def test_damaged_events_and_a_damaged_generation_leave_the_other(store, capsys, whole):
    run = begin(store, 3)
    flip(run.path / "events.jsonl", 0)
    (other,) = {"ck-000002", "ck-000003"} - {whole}
    flip(run.path / f"{other}.safetensors", 50)
    with run.lock():
        assert run.load()[1]["step"] == int(whole[-1])
    said = capsys.readouterr().out
    assert "events.jsonl: cut" in said and ("ck-000003" in said) == (whole == "ck-000002")


def test_killed_while_damaged_events_are_set_aside_it_recovers(store, capsys, monkeypatch):
    run = begin(store, 3)
    flip(run.path / "events.jsonl", 0)

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed), run.lock():
        patch.setattr(checkpoint.Events, "append", kill)
        run.load()
    with run.lock():
        assert run.load()[1]["step"] == 3
    assert run.events() == [{"lost": "events", "until": 3}]


FLIPS = [pytest.param(60, id="60"), pytest.param(2000, marks=pytest.mark.sweep, id="2000")]


@pytest.mark.parametrize("count", FLIPS)
def test_no_flipped_bit_is_silent(tmp_path, capsys, count):
    """In any file of an interrupted or a finished run: refused, or said and stepped around, or of no effect."""
    rng, found = random.Random(f"flips {count}"), collections.Counter()
    for name, make in (("begun", begin), ("finished", finish)):
        store = RunStore(tmp_path / name, tmp_path / "none")
        make(store, 3)
        capsys.readouterr()
        for _ in range(count // 2):
            root = tmp_path / "copy"
            shutil.copytree(store.root, root)
            run = RunStore(root, tmp_path / "none").open(RECIPE, "code", "data")
            victim = rng.choice([path for path in sorted(run.path.iterdir()) if path.stat().st_size])
            data = bytearray(victim.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            victim.write_bytes(data)
            found[name, outcome(run, name, capsys)] += 1
            shutil.rmtree(root)
    assert sum(found.values()) == count and found["begun", "went on"] and found["finished", "refused"], found
    with capsys.disabled():
        print(dict(found), end=" ") if count > 100 else None


def outcome(run, name, capsys) -> str:
    """What a reader gets: never another value without a word."""
    try:
        if name == "finished":
            same = run.result() == {"rows": ROWS, "run_id": run.id} and len(run.events()) == 3
            assert same and torch.equal(run.weights()["w"], tensors(3)["w"])
            return "no effect"
        with run.lock():
            state, meta = run.load()
        said = capsys.readouterr().out
        step = meta["step"]
        assert meta == {"step": step, "best": step / 2} and torch.equal(state["w"], tensors(step)["w"])
        assert said or step == 3
        events = [event for event in run.events() if "step" in event]
        assert events == [{"step": n} for n in range(1, step + 1)] or (said and not events)
        return "went on" if said else "no effect"
    except SlimnbError as error:
        assert len(str(error)) <= 240
        return "refused"


def test_nan_put_into_a_stored_tensor_is_refused(store, monkeypatch):
    run = begin(store, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "refuse_nan", lambda tensors, where: None)
        rewrite(newest(run), lambda h: None, {"w": torch.tensor([float("nan")])})
    assert "ck-000002.safetensors" in refused(run, "NumericsError")


@pytest.mark.parametrize("schema", ["slimnb.run/2", "other", None, 3])
def test_foreign_schema_is_refused(store, schema):
    run = begin(store, 2)
    rewrite(newest(run), lambda h: h.update(schema=schema))
    assert str(schema) in refused(run, "StoreError")


def test_checkpoint_of_another_recipe_is_refused_naming_the_difference(store):
    run, other = begin(store, 2), begin(store, 2, RECIPE | {"lr": 0.2, "seed": 7})
    for name in ("ck-000002.safetensors", "ck-000002.safetensors.sha256"):
        shutil.copy(other.path / name, run.path / name)
    assert "lr 0.2→0.1, seed 7→0" in refused(run, "StoreError")


STRANGE = ["link", "dangling", "pipe", "folder"]


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize(
    "name",
    ["lock", "owner.json", "events.jsonl", "ck-000002.safetensors", "ck-000002.safetensors.sha256", ""],
)
def test_strange_files_in_a_run_are_refused(store, tmp_path, kind, name):
    run = begin(store, 2)
    path = run.path / name if name else run.path
    target = tmp_path / "target"
    if name:
        target.write_bytes(path.read_bytes() if path.exists() else b"precious")
        path.unlink(missing_ok=True)
    else:
        shutil.move(path, target)
    if kind in ("link", "dangling"):
        path.symlink_to(target if kind == "link" else tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    if (name, kind) == ("", "folder"):
        return  # that is what belongs there
    content = snapshot(tmp_path)
    assert "is a" in refused(run, "StoreError") or (name, kind) == ("", "pipe")
    content.pop("runs/owner.json", None)
    assert snapshot(tmp_path) == content


@pytest.mark.parametrize("name", ["result.json", "weights.safetensors", "events.jsonl"])
@pytest.mark.parametrize("how", ["cut", "gone", "link", "changed"])
def test_damaged_result_is_refused_not_redone(store, tmp_path, name, how):
    run = finish(store)
    path = run.path / name
    data = path.read_bytes()
    if (name, how) == ("result.json", "gone"):
        return  # then the run is simply not finished
    path.unlink()
    if how == "link":
        (tmp_path / "target").write_bytes(data)
        path.symlink_to(tmp_path / "target")
    elif how != "gone":
        path.write_bytes(data[:-1] if how == "cut" else data.replace(b"s", b"z"))
    before = snapshot(store.root)
    read = {"result.json": run.result, "weights.safetensors": run.weights, "events.jsonl": run.events}
    with pytest.raises(SlimnbError, match="StoreError") as caught:
        read[name]()
    assert len(str(caught.value)) <= 240
    assert snapshot(store.root) == before
