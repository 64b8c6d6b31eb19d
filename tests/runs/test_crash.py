"""Kills at every named place and at random times end in the very bits of an undisturbed run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimnb.runs import files as durable
from slimnb.runs import store
from slimnb.runs.files import STAGES

ROOT = Path(durable.__file__).parents[2]
SHORT = {"steps": 9, "every": 3}
LONG = {"steps": 30, "every": 3}


class Server:
    def __init__(self, process):
        self.process = process

    def __call__(self, root, **job):
        """Exit status of a child that trains under `root` (-9: killed)."""
        self.process.stdin.write(json.dumps({"root": str(root), **job}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parents[1] / "crash_child.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        assert process.stdout.readline() == "ready\n"
        yield Server(process)
        process.stdin.close()


def tree(root):
    """Every file of the only run under `root` with its bytes."""
    (folder,) = Path(root).iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    """Bytes of undisturbed runs, made twice: they must agree before anything else means something."""
    found = {}
    for name, size in {"short": SHORT, "long": LONG}.items():
        first, second = (tmp_path_factory.mktemp(name) / "runs" for _ in range(2))
        assert server(first, **size) == 0
        start = time.perf_counter()
        assert server(second, **size) == 0
        found[name] = tree(first), time.perf_counter() - start
        assert tree(second) == found[name][0]
    return found


def test_reference_is_whole(reference):
    files, _ = reference["short"]
    weights = {"weights.safetensors", "weights.safetensors.sha256"}
    assert files.keys() == {"lock", "events.jsonl", "result.json", "result.json.sha256"} | weights
    steps = [json.loads(line)["step"] for line in files["events.jsonl"].splitlines()]
    assert steps == list(range(1, SHORT["steps"] + 1))


KINDS = ("checkpoint", "checkpointsum", "weights", "weightssum", "result", "resultsum")
ALWAYS = {f"{kind}.{stage}" for kind, stage in zip(KINDS, STAGES, strict=True)} | {
    name for name in store.FAILPOINTS if name.partition(".")[0] not in (*KINDS, "owner")}
"""One kill in each stage of a file, each in another kind of file, and those in none; `-m sweep` has the others."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.sweep)
                                  for name in store.FAILPOINTS if name != "recover.aside"])
def test_kill_at_failpoint(server, reference, tmp_path, name):
    root = tmp_path / "runs"
    middle = 2 if name.startswith(("checkpoint", "log", "save")) else 1
    assert server(root, **SHORT, failpoint=f"{name}:{middle}") == -9
    server(root, **SHORT, failpoint=f"{name}:1")  # and again, while it recovers or goes on
    assert server(root, **SHORT) == 0
    assert tree(root) == reference["short"][0]


def test_kill_while_setting_aside(server, reference, tmp_path):
    root = tmp_path / "runs"
    assert server(root, **SHORT, failpoint="checkpoint.dirsynced:2") == -9
    (newest,) = root.glob("*/ck-000002.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    for _ in range(2):  # after its checksum was set aside, then after the file itself
        assert server(root, **SHORT, failpoint="recover.aside:1") == -9
    assert server(root, **SHORT) == 0
    files = tree(root)
    assert "ck-000002.safetensors.bad" in files
    assert {n: b for n, b in files.items() if not n.endswith(".bad")} == reference["short"][0]


@pytest.mark.sweep
@pytest.mark.parametrize("wanted", [24, 200])
def test_random_kills(server, reference, tmp_path, wanted):
    files, seconds = reference["long"]
    rng = random.Random(2026 + wanted)
    kills = finished = 0
    while kills < wanted:
        root, tries, status = tmp_path / f"runs{finished}", 0, -9
        while status == -9:
            # On a busy machine the reference may have been slow and these fast, or the reverse.
            patience = None if tries == 12 else rng.uniform(0.01, min(seconds, 0.3))
            status = server(root, **LONG, kill_after=patience)
            kills += status == -9
            tries += 1
        assert status == 0
        assert tree(root) == files
        finished += 1


def test_signal_saves_at_the_step_and_goes_on(server, reference, tmp_path):
    root = tmp_path / "runs"
    for step in (1, 4, 6, 9):
        assert server(root, **SHORT, terminate_at=step) == 75
    assert server(root, **SHORT) == 0
    assert tree(root) == reference["short"][0]


def test_every_stage_is_swept():
    for kind in KINDS:
        assert {f"{kind}.{stage}" for stage in STAGES} <= set(store.FAILPOINTS)


HOLDER = """
import os, sys, time
from pathlib import Path
from slimnb.errors import SlimnbError
from slimnb.runs.store import RunStore
root, go, enough, fork = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
run = RunStore(root).open({"seed": 0}, "c", "d")
print("up", flush=True)
while not go.exists():
    time.sleep(0.001)
try:
    with run.lock():
        if fork == "fork":
            ready, tell = os.pipe()
            if os.fork() == 0:
                os.write(tell, b"I live")
                time.sleep(60)
                os._exit(0)
            os.read(ready, 6)
        print("locked", flush=True)
        while not enough.exists():
            time.sleep(0.01)
except SlimnbError as error:
    print(error, flush=True)
    sys.exit(error.exit_status)
"""


@pytest.fixture
def holders(tmp_path):
    """Starts processes that take one run's lock when told to `go`; ends them afterwards."""
    started = []

    def start(count, fork="no"):
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", HOLDER, *(str(tmp_path / n) for n in ("s", "go", "end"))]
        kw = {"stdout": subprocess.PIPE, "text": True, "env": env, "start_new_session": True}
        new = [subprocess.Popen([*command, fork], **kw) for _ in range(count)]
        started.extend(new)
        assert all(process.stdout.readline() == "up\n" for process in new)
        (tmp_path / "go").touch()
        return new

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_one_of_four_works_the_others_say_so(holders, tmp_path):
    processes = holders(4)
    lines = [process.stdout.readline() for process in processes]
    (tmp_path / "end").touch()
    codes = sorted(process.wait() for process in processes)
    assert codes == [0, 75, 75, 75]
    assert sum(line == "locked\n" for line in lines) == 1
    winner = processes[lines.index("locked\n")]
    for line in (line for line in lines if line != "locked\n"):
        assert "BusyError" in line and len(line) <= 241
        assert f"pid {winner.pid}" in line or "not named yet" in line


@pytest.mark.parametrize("fork", ["no", "fork"])
def test_lock_of_a_killed_owner_is_free_at_once(holders, tmp_path, fork):
    (process,) = holders(1, fork)
    assert process.stdout.readline() == "locked\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # With "fork" its child lives on, and must not have kept the lock.
    with store.RunStore(tmp_path / "s").open({"seed": 0}, "c", "d").lock():
        pass
