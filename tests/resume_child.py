"""Trains a small net to its end through the run store; test_resume.py starts it, and kills it.

`python resume_child.py` is a fork server: it reads one JSON job per line, {"root", "method", "until",
"after", "signal"}, trains in a fork whose stderr goes to ROOT.said, sends it `signal` (if any) `after`
seconds after it has stored checkpoint number `until`, and answers with its wait status.
`python resume_child.py ROOT METHOD` trains in this very process. SIGTERM means: save, exit with 75.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
from small_training import METHODS, MULTS, Curious, Noise, everything

from slimnb.errors import SlimnbError
from slimnb.runs.lock import stopping
from slimnb.runs.store import RunStore, machine_fingerprint
from slimnb.train.calibrate import calibrate_bn, evaluate
from slimnb.train.loop import train
from slimnb.train.optim import Schedule, make_optimizer

STEPS = 30
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def fit(root: str, method: str) -> None:
    """A checkpoint after every step; the result is the whole state, the history and an evaluation."""
    torch.set_num_threads(1)
    run = RunStore(root, f"{root}-none").open({"method": method}, "c0de", "da7a", machine_fingerprint())
    with run.lock(), stopping.later():
        if run.result() is not None:
            return
        net, sampler, objective = METHODS[method]()
        sampler, optimizer = Curious(sampler), make_optimizer(net)
        history = train(
            net,
            Noise(),
            sampler,
            objective,
            Schedule(0.05, STEPS),
            optimizer,
            run=run,
            save_seconds=0,
            intervals=7,
            stop=lambda: run.preempted,
            quiet=True,
        )
        state = everything(net, optimizer) | sampler.state_dict()
        subnets, images = (
            [net.uniform(mult) for mult in MULTS],
            [Noise().batch(step) for step in (100, 101)],
        )
        if method == "US-Net":
            calibrate_bn(net, subnets, [x for x, _ in images])
            state |= {f"calibrated/{name}": value for name, value in net.named_buffers()}
        rows = [{"top1": found.top1, "ce": found.ce} for found in evaluate(net, subnets, images)]
        run.finish({"history": history, "rows": rows}, state)


def status_of(root: str, method: str) -> int:
    """0, or the exit status of the error that ended the training, told on stderr."""
    try:
        fit(root, method)
    except SlimnbError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_status
    return 0


def generation(root: Path) -> int:
    """Number of the newest checkpoint; 0 for none."""
    return max((int(path.stem[3:]) for path in root.glob("*/ck-*.safetensors")), default=0)


def serve() -> None:
    make_optimizer(METHODS["S-Net"]()[0])  # makes torch import what is slow, once for all forks
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with open(f"{job['root']}.said", "w") as sys.stderr:
                    status = status_of(job["root"], job["method"])
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)
        if job["signal"]:
            while generation(Path(job["root"])) < job["until"] and not os.waitid(os.P_PID, pid, ENDED):
                time.sleep(0.004)
            time.sleep(job["after"])
            os.kill(pid, job["signal"])  # a zombie until it is waited for
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    sys.exit(status_of(*sys.argv[1:]) if len(sys.argv) > 1 else serve())
