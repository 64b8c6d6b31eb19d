"""A run's identity and life, and what it does when the disk or the machine is not as before."""

import contextlib
import errno
import json
import os
import signal
import threading

import pytest
import torch
from refusals import fails
from small_runs import MACHINE, RECIPE, ROWS, begin, finish, refused, tensors

from slimnb.errors import SlimnbError, StoreError
from slimnb.runs import files
from slimnb.runs.lock import Stopping, stopping
from slimnb.runs.store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs", tmp_path / "results")


# ---- identity ----


def test_id_depends_on_recipe_code_and_data(store):
    def ids(recipe=RECIPE, code="c", data="d"):
        run = store.open(recipe, code, data)
        return run.id, run.recipe_id

    assert ids() == ids(dict(reversed(RECIPE.items())) | {"widths": (0.25, 1.0)})
    assert ids()[0] != ids(code="x")[0] and ids()[1] == ids(code="x")[1]
    for changed in (ids(data="x"), ids(RECIPE | {"seed": 1}), ids(RECIPE | {"lr": 0.1000001})):
        assert changed[0] != ids()[0] and changed[1] != ids()[1]
    assert ids()[0].startswith("s-net-switches-smoke-")


@pytest.mark.parametrize("paper", ["../../etc", "a/b\0c", "x" * 300, "раper", "\n", "", "-", "A B"])
def test_id_is_a_safe_name(store, paper):
    run = store.open({"paper": paper}, "c", "d")
    assert set(run.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(run.id) <= 80
    assert run.path.parent == store.root and run.id[0] != "-"


def test_opening_touches_nothing(store):
    run = store.open(RECIPE, "c", "d")
    assert run.result() is None and run.weights() is None and run.events() == []
    assert not store.root.exists()


# ---- a life ----


def test_interrupted_run_goes_on_where_it_was(store):
    run = begin(store, 5)
    with run.lock():
        found, meta = run.load()
        assert meta == {"best": 2.5, "step": 5}
        assert found.keys() == {"w", "count"} and torch.equal(found["w"], tensors(5)["w"])
    assert [e["step"] for e in run.events()] == [1, 2, 3, 4, 5]
    names = sorted(path.name for path in run.path.glob("ck-*.safetensors"))
    assert names == ["ck-000004.safetensors", "ck-000005.safetensors"]


def test_events_after_the_checkpoint_are_dropped(store):
    run = begin(store, 2)
    with run.lock():
        run.load()
        run.log({"step": 3})
        run.log({"step": 4})
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"step": 5, "cut')
    assert [e["step"] for e in run.events()] == [1, 2, 3, 4]
    with run.lock():
        assert run.load()[1]["step"] == 2
        run.log({"step": 3})
    assert [e["step"] for e in run.events()] == [1, 2, 3]


def test_run_without_a_checkpoint_begins_anew(store):
    run = store.open(RECIPE, "code", "data")
    with run.lock():
        run.load()
        run.log({"step": 1})
    with run.lock():
        assert run.load() is None
    assert run.events() == []


def test_finished_run_is_done_for_good(store):
    run = finish(store)
    again = store.open(RECIPE, "code", "data")
    assert again.result() == {"rows": ROWS, "run_id": run.id}
    assert torch.equal(again.weights()["w"], tensors(3)["w"])
    assert [e["step"] for e in again.events()] == [0, 1, 2]
    assert not list(run.path.glob("ck-*"))
    for call in (again.load, lambda: again.save(1, {}, {}), lambda: again.log({})):
        assert "finished" in refused(again, "StoreError", call)
    assert "finished" in refused(again, "StoreError", lambda: again.finish({}))


def test_writing_needs_the_lock_and_loading(store):
    run = store.open(RECIPE, "code", "data")
    for call in (run.load, lambda: run.save(1, {}, {}), lambda: run.log({}), lambda: run.finish({})):
        with pytest.raises(SlimnbError, match=r"StoreError: .* without its lock"):
            call()
    other = begin(store, 1)
    assert "before it was loaded" in refused(other, "StoreError", lambda: other.log({}))


def test_same_process_cannot_enter_twice(store):
    run = begin(store, 1)
    other = store.open(RECIPE, "code", "data")
    busy = pytest.raises(SlimnbError, match=rf"BusyError: .* pid {os.getpid()}")
    with run.lock(), busy, other.lock():
        pass
    with run.lock():
        assert run.load()


def test_taken_over_writer_is_refused(store):
    run = begin(store, 1)
    with run.lock():
        run.load()
        (run.path / "lock").unlink()  # as happens when somebody "cleans up" under a paused process
        lost = pytest.raises(SlimnbError, match="BusyError")
        with store.open(RECIPE, "code", "data").lock(), lost:
            run.save(2, tensors(2), {})


def test_bad_values_are_refused_and_nothing_is_written(store):
    run = begin(store, 2)
    nan = {"w": torch.tensor([1.0, float("nan")])}

    def calls():
        run.load()
        for code, call in (
            ("NumericsError", lambda: run.save(3, nan, {})),
            ("StoreError", lambda: run.save(3, tensors(3), {"loss": float("nan")})),
            ("StoreError", lambda: run.save(3, {"step": 3}, {})),
        ):
            with pytest.raises(SlimnbError, match=code):
                call()
        for call in (lambda: run.log({"x": float("inf")}), lambda: run.finish({"rows": [{1: 2}]})):
            with pytest.raises(SlimnbError, match="StoreError"):
                call()
        run.finish({"run_id": "mine"})

    assert "result.run_id" in refused(run, "StoreError", calls)


# ---- the disk and the machine ----


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk_at_any_moment_loses_nothing(store, monkeypatch, call):
    run, real, last = begin(store, 3), getattr(os, call), 3
    with run.lock():
        run.load()
        for nth in range(1, 8):
            calls = iter(range(nth - 1))

            def refuse(*args, calls=calls, **kwargs):
                if next(calls, None) is None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, refuse)
                try:
                    run.log({"step": last + 1})
                    run.save(last + 1, tensors(last + 1), {})
                    last += 1
                except SlimnbError as error:
                    assert type(error).__name__ == "ResourceError" and error.exit_status == 6
            assert not list(run.path.glob(".tmp-*"))
            found, meta = run.load()
            assert meta["step"] in (last, last + 1)  # the commit itself may have succeeded
            last = meta["step"]
            assert torch.equal(found["w"], tensors(last)["w"])
        run.log({"step": last + 1})
        run.save(last + 1, tensors(last + 1), {})
    assert [e["step"] for e in run.events()] == list(range(1, last + 2))


def test_half_written_event_is_taken_back(store, monkeypatch):
    run, write, calls = begin(store, 1), os.write, []

    def refuse_second(fd, data):
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    with run.lock():
        run.load()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse_second)
            with pytest.raises(SlimnbError, match="ResourceError"):
                run.log({"step": 2})
        run.log({"step": 2})
        run.save(2, tensors(2), {})
        assert run.load()[1]["step"] == 2
    assert [e["step"] for e in run.events()] == [1, 2]


def test_read_only_store_is_one_line(store, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(SlimnbError, match="StoreError"), store.open(RECIPE, "c", "d").lock():
        pass


def test_other_machine_is_refused_or_told(store, capsys):
    run = begin(store, 2, machine=MACHINE)
    other = MACHINE | {"threads": 8}
    assert "threads 1→8" in refused(store.open(RECIPE, "code", "data", other), "StoreError")
    drifting = store.open(RECIPE, "code", "data", other, allow_drift=True)
    with drifting.lock():
        assert drifting.load()[1]["step"] == 2
        drifting.save(3, tensors(3), {})
    assert "drift (threads 1→8)" in capsys.readouterr().out
    with drifting.lock():  # the same machine as last time, and still a run with drift
        drifting.load()
        drifting.finish({"rows": ROWS})
    assert run.result()["resumed_with_drift"] == "threads 1→8"
    assert json.loads(drifting.store.commit(run).read_text())["resumed_with_drift"] == "threads 1→8"


def test_same_machine_resumes_without_a_word(store, capsys):
    begin(store, 2, machine=MACHINE)
    run = finish(store, machine=dict(reversed(MACHINE.items())))
    assert "resumed_with_drift" not in run.result() and not capsys.readouterr().out


def test_stopping_is_inert_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body():
        with stopping, stopping.later():
            seen.append((signal.getsignal(signal.SIGTERM), stopping._held, stopping._depth))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, 0, 0)]


@pytest.mark.parametrize("number", Stopping.SIGNALS)
def test_a_signal_raises_at_once_or_at_the_end_of_what_must_not_be_cut(number):
    before, done = signal.getsignal(number), []
    with fails("BusyError", "asked to end"), stopping:
        signal.raise_signal(number)
        done.append("never")
    with fails("BusyError"), stopping, stopping.later():
        for _ in range(2):  # a second one changes nothing
            signal.raise_signal(number)
        with stopping.later():
            done.append("whole")
        done.append(stopping.requested)
    assert done == ["whole", True] and signal.getsignal(number) == before
    with stopping:
        assert not stopping.requested, "a request of before is over"


def test_a_request_that_was_swallowed_is_not_lost():
    with fails("BusyError"), stopping:
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGTERM)
        with stopping:
            pytest.fail("went on")


def test_an_error_that_was_made_of_a_request_is_the_request_and_another_one_is_itself():
    with fails("BusyError"), stopping:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise ValueError("cannot transform a tree") from error  # as parsers do with what their callbacks raise
    with fails("StoreError"), stopping, stopping.later():
        signal.raise_signal(signal.SIGTERM)
        raise StoreError("it", "the disk is broken", "Buy another.")
    with pytest.raises(ValueError, match="ours"), stopping:
        raise ValueError("ours")


def test_a_second_signal_during_a_save_or_a_finish_leaves_it_whole(store, monkeypatch):
    through = files.write_file

    def signalled(path, *rest):
        signal.raise_signal(signal.SIGTERM)
        through(path, *rest)
        signal.raise_signal(signal.SIGINT)

    run = begin(store, 2)
    for step, write in ((2, lambda: run.save(3, tensors(3), {})), (3, lambda: run.finish({"rows": ROWS}, tensors(3)))):
        with fails("BusyError"), run.lock():
            assert run.load()[1]["step"] == step
            with monkeypatch.context() as patch:
                patch.setattr(files, "write_file", signalled)
                write()
            pytest.fail("went on")
    assert run.result()["rows"] == ROWS and torch.equal(run.weights()["w"], tensors(3)["w"])
    assert not list(run.path.glob("ck-*")) and not list(run.path.glob(".tmp-*"))


def test_a_job_in_the_background_goes_on_ignoring_its_terminal(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_next_owner_removes_what_a_killed_writer_left(store):
    run = begin(store, 1)
    for name in (".tmp-77-ck-000002.safetensors", ".tmp-78-owner.json", "ck-000002.safetensors.sha256"):
        (run.path / name).write_bytes(b"half")
    with run.lock():  # even if it then finds nothing to do
        pass
    assert sorted(path.name for path in run.path.iterdir()) == [
        "ck-000001.safetensors", "ck-000001.safetensors.sha256", "events.jsonl", "lock"]


def test_a_commit_that_was_killed_hides_no_record(store):
    run = finish(store)
    path = store.commit(run)
    path.with_name(f".tmp-77-{path.name}").write_bytes(path.read_bytes()[:100])
    assert [record["run_id"] for record in store.records()] == [run.id]
