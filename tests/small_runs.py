"""Small runs to test the store with: begun, interrupted, finished; and what an error may leave."""

import os

import pytest
import torch

from slimnb.errors import SlimnbError

RECIPE = {"paper": "S-Net", "arm": "switches", "scale": "smoke", "seed": 0, "lr": 0.1, "widths": [0.25, 1.0]}
MACHINE = {"torch": "1", "threads": 1}
ROWS = [{"mult": m, "top1": t} for m, t in ((0.25, 0.5), (1.0, 0.75))]


def tensors(step):
    return {"w": torch.full((3, 4), float(step)), "count": torch.tensor(step)}


def begin(store, steps, recipe=None, **kwargs):
    """A run interrupted after `steps`: an event and a checkpoint at each."""
    run = store.open(recipe or RECIPE, "code", "data", **kwargs)
    with run.lock():
        assert run.load() is None
        for step in range(1, steps + 1):
            run.log({"step": step})
            run.save(step, tensors(step), {"best": step / 2})
    return run


def finish(store, steps=3, recipe=None, code="code", **kwargs):
    run = store.open(recipe or RECIPE, code, "data", **kwargs)
    with run.lock():
        run.load()
        for step in range(steps):
            run.log({"step": step})
        run.finish({"rows": ROWS}, tensors(steps))
    return run


def snapshot(folder):
    """Everything under a folder, links and pipes included, and content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else os.lstat(path).st_mode
        for path in sorted(folder.rglob("*"))
        if path.name != "owner.json"
    }


def refused(run, code, call=None):
    """The line of the error that loading (or `call`) raises; the store is left as it was."""
    before = snapshot(run.store.root)
    with pytest.raises(SlimnbError) as caught, run.lock():
        (call or run.load)()
    assert type(caught.value).__name__ == code, caught.value
    line = str(caught.value)
    assert len(line) <= 240 and line.isprintable(), len(line)
    assert snapshot(run.store.root) == before
    return line
