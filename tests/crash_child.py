"""A fork server that trains a tiny model in children and kills them; started by test_crash.py.

Reads one JSON job per line: {"root", "steps", "every"} and how the child that trains shall end:
"failpoint": "name:n", "kill_after": seconds, or "terminate_at": step (SIGTERM, twice). One line with
its exit status goes back. torch is imported once, here: a kill costs a fork and not an import.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback

import torch

from slimnb.errors import BusyError, SlimnbError
from slimnb.runs.lock import stopping
from slimnb.runs.store import RunStore, check_like, machine_fingerprint

RECIPE = {"paper": "crash test", "seed": 0, "lr": 0.05}


def draw(step, shape, stream):
    """Random numbers that depend on the step alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * stream + step))


def train(root, steps, every, terminate_at=None):
    """Momentum SGD with an average of the weights and a best-so-far: four kinds of state."""
    torch.set_num_threads(1)
    run = RunStore(root, f"{root}-committed").open(RECIPE, "c0de", "da7a", machine_fingerprint())
    with run.lock(), stopping.later():
        if run.result() is not None:
            return
        state = {"weight": draw(0, (64, 32), 1)}
        state |= {name: torch.zeros_like(state["weight"]) for name in ("momentum", "average")}
        meta, first = {"best": None, "loss": None}, 1
        found = run.load()
        if found is not None:
            check_like(found[0], state)
            state, meta = found
            first = meta.pop("step") + 1
        for step in range(first, steps + 1):
            x = draw(step, (16, 64), 2)
            error = x @ state["weight"] - x[:, :32].roll(1, 1)
            loss = error.square().mean().item()
            state["momentum"].mul_(0.9).add_(x.T @ error / 16)
            state["weight"].sub_(RECIPE["lr"] * state["momentum"])
            state["average"].lerp_(state["weight"], 0.1)
            meta["loss"] = loss
            meta["best"] = loss if meta["best"] is None else min(loss, meta["best"])
            run.log({"step": step, "loss": loss})
            if step == terminate_at:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            if step % every == 0 or run.preempted:
                run.save(step, state, meta)
            if run.preempted:
                raise BusyError(f"step {step}", "asked to stop", "Run again.")
        run.finish({"rows": [meta]}, state)


def child(job):
    os.environ["SLIMNB_FAILPOINT"] = job.get("failpoint", "")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout carries the statuses
            train(job["root"], job["steps"], job["every"], job.get("terminate_at"))
    except SlimnbError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_status
    return 0


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(job)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if job.get("kill_after") is not None:
            time.sleep(job["kill_after"])
            os.kill(pid, signal.SIGKILL)  # if it has ended it is a zombie still: no other's number
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
