"""A training that is killed again and again ends in the very bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from resume_child import generation
from small_training import METHODS

HERE = Path(__file__).parents[1]
COMMAND = [sys.executable, str(HERE / "resume_child.py")]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))), "OMP_NUM_THREADS": "1"}
KILLS = 6
"""For each method, in forks of one interpreter; fresh interpreters come on top."""


@pytest.fixture(scope="module")
def server():
    """Calls resume_child.py's fork server; gives the status of the fork that trained."""
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def call(
            root: Path, method: str, signal: int | None = None, until: int = 0, after: float = 0.0
        ) -> int:
            job = {"root": str(root), "method": method, "signal": signal, "until": until, "after": after}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield call
        process.stdin.close()


def tree(root: Path) -> dict[str, bytes]:
    """Every file of the only run under `root` with its bytes."""
    (folder,) = root.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=METHODS)
def reference(request, server, tmp_path_factory):
    """(method, files of an undisturbed run, its seconds): made twice, or nothing else means anything."""
    first, second = (tmp_path_factory.mktemp("straight") / "runs" for _ in range(2))
    assert server(first, request.param) == 0
    began = time.perf_counter()
    assert server(second, request.param) == 0
    seconds = time.perf_counter() - began
    assert tree(first) == tree(second)
    return request.param, tree(first), seconds


def test_the_result_holds_the_whole_state(reference):
    _, files, _ = reference
    assert files.keys() >= {"result.json", "weights.safetensors"} and not any(
        n.startswith("ck-") for n in files
    )
    result = json.loads(files["result.json"])["result"]
    assert len({row["step"] for row in result["history"]}) == 8 and len(result["rows"]) == 3
    names = json.loads(files["weights.safetensors"][8:].split(b"}}")[0].decode() + "}}")
    for part in ("conv.weight", "momentum_buffer", "running_var", "mean"):
        assert any(part in name for name in names)


def test_killed_at_random_times(server, reference, tmp_path):
    method, files, seconds = reference
    rng = random.Random(f"{method} 2026")
    kills = resumed = finished = 0
    while kills < KILLS:
        root, status = tmp_path / f"runs{finished}", -9
        while status == -9:
            resumed += generation(root) > 0
            if (
                rng.random() < 0.5
            ):  # any time at all, or soon after some checkpoint, however busy the machine is
                when = {"after": rng.uniform(0.05, 0.8) * seconds}
            else:
                when = {
                    "until": generation(root) + rng.randint(1, 8),
                    "after": rng.uniform(0, seconds / 30),
                }
            status = server(root, method, signal.SIGKILL, **when)
            kills += status == -9
        assert status == 0
        assert tree(root) == files
        finished += 1
    assert resumed >= KILLS // 3, "too few kills came after a checkpoint"


def test_stopped_by_a_signal_it_saves_and_says_try_again(server, reference, tmp_path):
    method, files, _ = reference
    root = tmp_path / "runs"
    for until in (3, 10):
        assert server(root, method, signal.SIGTERM, until) == 75
        said = (tmp_path / "runs.said").read_text()
        line = r"slimnb: BusyError: stopped at step (\d+) of 30 .* Progress is kept\.\n"
        assert int(re.fullmatch(line, said)[1]) == generation(root) >= until
    assert server(root, method) == 0
    assert tree(root) == files


@pytest.mark.sweep
@pytest.mark.parametrize("reference", ["US-Net"], indirect=True)
def test_fresh_interpreters(server, reference, tmp_path):
    """Killed twice, each time in a new process, elsewhere, with another hash seed."""
    method, files, _ = reference
    root, rng = tmp_path / "runs", random.Random(7)
    for number in range(2):
        target = generation(root) + rng.randint(2, 6)
        (place := tmp_path / f"place{number}").mkdir()
        env = ENV | {"PYTHONHASHSEED": str(number), "TZ": "Asia/Tokyo", "LC_ALL": "C"}
        with subprocess.Popen([*COMMAND, str(root), method], env=env, cwd=place) as process:
            while generation(root) < target and process.poll() is None:
                time.sleep(0.004)
            process.kill()
        assert process.returncode == -9 and generation(root) >= target
    assert server(root, method) == 0
    assert tree(root) == files
