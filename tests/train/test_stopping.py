"""Asked to stop at any moment, a training ends with status 75 at the next safe point, and goes on in the same bits."""

import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from refusals import fails, refused

from slimnb.__main__ import main
from slimnb.data.batches import Batches
from slimnb.data.datasets import load_data
from slimnb.papers.slimmable import recipes
from slimnb.runs import files
from slimnb.runs.lock import stopping
from slimnb.runs.store import Run, RunStore
from slimnb.train import experiment, loop, measure

TINY = replace(recipes.SMOKE, arm="US-Net", method="sandwich", bn="calibrated", epochs=2, mults=(0.5, 1.0),
               train_mults=(0.5, 1.0), n_random=0, layout=((8, 1), (16, 2), (16, 1)), calibration_images=16,
               dtype="float32", batch_size=16)
ONCE = {"paper": "x", "arm": "clock"}


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", train=60, test=20)


def chapter(data, store) -> tuple:
    """Two runs, a table of latencies, the small records: (results, weights of each run, table)."""
    def another(context):
        return [replace(TINY, arm="Second", epochs=1)]

    with stopping:
        results = experiment.study([lambda context: [TINY], another], "smoke", [0], data, store, quiet=True)
        table = experiment.once(store, ONCE, "code", clock)
        experiment.commit([result.recipe for result in results], data, store, store.committed)
    return [(r.run_id, r.rows, r.history) for r in results], [store.weights_of(r.run_id) for r in results], table


def clock() -> dict:
    return {"ms": 1.5}


@pytest.fixture(scope="module")
def straight(data, store):
    return chapter(data, store)


# Where the signal comes, as what is called just then: (owner, name, which call).
MOMENTS = {
    "first step": (Batches, "batch", 1),
    "a step": (experiment, "train", "step"),
    "a save": (files, "write_checked", "checkpoint"),
    "calibration": (measure, "calibrate_bn", 1),
    "evaluation": (measure, "evaluate", 1),
    "evaluation on the test images": (measure, "evaluate", 2),
    "finish": (Run, "finish", 1),
    "writing weights": (files, "write_checked", "weights"),
    "writing the result": (files, "write_checked", "result"),
    "between runs": (experiment, "code_of", 2),
    "second run": (measure, "evaluate", 3),
    "latency table": (None, "clock", None),
    "commit": (RunStore, "commit", 1),
    "second record": (RunStore, "commit", 2),
}


@contextmanager
def signalled(monkeypatch, moment: str, numbers: tuple):
    """Within it this process gets the signals when it comes to the moment."""
    owner, name, which = MOMENTS[moment]
    calls = []

    def send() -> None:
        for number in numbers:
            signal.raise_signal(number)

    def struck(*args, **options):
        calls.append(args)
        if len(calls) == which or which in args:
            send()
        return through(*args, **options)

    with monkeypatch.context() as patch:
        if moment == "latency table":
            patch.setitem(globals(), "clock", lambda: send() or {"ms": 9.0})
        elif which == "step":
            batch = Batches.batch
            patch.setattr(Batches, "batch", lambda self, at: (self.shuffle and at == 3 and send(), batch(self, at))[1])
        else:
            through = getattr(owner, name)
            patch.setattr(owner, name, struck)
        yield


SIGNALS = [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.parametrize("numbers", [pytest.param(pair, marks=[pytest.mark.sweep] if at else [],
                                                  id="+".join(signal.Signals(number).name for number in pair))
                                     for at, pair in enumerate(SIGNALS)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_asked_at_any_moment_it_ends_and_goes_on_in_the_same_bits(moment, numbers, straight, data, tmp_path,
                                                                  monkeypatch):
    store, steps, step = RunStore(tmp_path / "runs", tmp_path / "results"), [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *args, **options: steps.append(1) or step(*args, **options))
    with signalled(monkeypatch, moment, numbers), fails("BusyError", "asked to end") as caught:
        chapter(data, store)
    assert caught.value.exit_status == 75
    assert not list(tmp_path.rglob(".tmp-*")) and not stopping._depth and not stopping._held
    ids, weights, table = chapter(data, store)
    assert ids == straight[0] and table == straight[2]
    for one, other in zip(straight[1], weights, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert len(steps) == 3 * TINY.batches(data, "cpu").steps_per_epoch, "no step was made twice"
    assert len(list(store.committed.glob("*.json"))) == 2 and not list(store.root.rglob("ck-*"))


# -- going on elsewhere ------------------------------------------------------------------------------------


def test_going_on_with_other_threads_is_an_option_and_the_result_says_so(data, tmp_path, monkeypatch, capsys):
    store = RunStore(tmp_path / "runs", tmp_path / "results")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with signalled(monkeypatch, "a step", (signal.SIGTERM,)), fails("BusyError"):
        experiment.run(TINY, data, store, quiet=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    refused("StoreError", experiment.run, TINY, data, store, words=r"threads 1→2.*--allow-drift")
    monkeypatch.setenv(experiment.ALLOW_DRIFT, "1")  # as the kernel of a chapter gets it
    assert experiment.run(TINY, data, store, quiet=True).resumed_with_drift == "threads 1→2"
    (path,) = experiment.commit([TINY], data, store, tmp_path / "results")
    capsys.readouterr()
    served = experiment.run(TINY, data, RunStore(tmp_path / "none", path.parent))
    assert served.resumed_with_drift == "threads 1→2" and "not bit for bit" in capsys.readouterr().out
    assert not experiment.run(replace(TINY, seed=5), data, store, quiet=True).resumed_with_drift


@pytest.mark.parametrize("option", [[], ["--allow-drift"]])
def test_both_commands_have_the_option(option, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setenv(experiment.ALLOW_DRIFT, "")
    monkeypatch.setattr(experiment, "study", lambda *args, **options: asked.update(options) or [])
    monkeypatch.setattr("slimnb.data.datasets.load_data", lambda *args, **options: None)
    main(["train", "01", "--scale", "smoke", "--device", "cpu", *option])
    monkeypatch.setattr("slimnb.book.execute.execute",
                        lambda *args, **options: asked.update(kernel=os.environ[experiment.ALLOW_DRIFT]))
    main(["run", "01", *option])
    assert (asked["allow_drift"], asked["kernel"]) == ((True, "1") if option else (False, ""))
