"""The benchmark program measures, prints and stores; how fast anything is, is not a test."""

import json
import os
import shutil
from math import isfinite
from pathlib import Path

import pytest
import torch

from slimnb.nets.mobilenet import MobileNetV1
from slimnb.papers.ds_net.nets import DSMobileNet

ROOT = Path(__file__).parents[1]
MULTS = (0.25, 0.5, 1.0)


def tiny():
    return MobileNetV1(5, 32, layout=((16, 2), (32, 2), (32, 1)))


@pytest.fixture
def program(monkeypatch, tmp_path):
    """The program's main module, on tiny nets and in an empty folder."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    from benchmarks import __main__ as program

    threads = torch.get_num_threads()
    for name in ("MobileNetV1", "ResNet50"):
        monkeypatch.setattr(program, name, lambda classes, side: tiny())
    yield program
    torch.set_num_threads(threads)


def test_quick_run_stores_valid_json(program, capsys, tmp_path):
    program.main(["--quick", "--only", "C5", "C10"])
    stored = json.loads((tmp_path / program.PARTIAL).read_text())
    assert not (tmp_path / program.FULL).exists()  # a part never replaces the whole
    assert stored["quick"] is True and stored["torch"] == torch.__version__
    assert stored["machine"]["threads"] == 1
    assert [reading["gate"] for reading in stored["readings"]] == ["C5", "C5", "C10", "C10"]
    for reading in stored["readings"]:
        assert 0 < reading["low"] <= reading["value"] <= reading["high"] and isfinite(reading["high"])
        assert reading["met"] == (reading["value"] <= reading["goal"]) and reading["rounds"] >= 3
        assert len(reading["ms"]) == 2 and min(reading["ms"].values()) > 0
    shown = capsys.readouterr().out
    assert "measured on 10, extrapolated" in shown and str(program.PARTIAL) in shown
    assert all(reading["what"] in shown for reading in stored["readings"])


def test_an_unknown_gate_is_refused(program, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["--only", "C99"])
    assert stopped.value.code == 2
    assert "C99" in capsys.readouterr().err


def test_every_gate_gives_readings_on_a_tiny_net(program):
    from benchmarks import dynamic, inference, sampling, search, structures, training

    net = tiny()
    readings = [*inference.sliced("tiny", net, 2, MULTS, 0.0), inference.switching("tiny", net, MULTS, 0.0)]
    readings.append(inference.summary(readings[:3]))
    for gate, dtype in (("C8", torch.float32), ("C7", torch.bfloat16)):
        readings += training.sandwich(gate, "tiny", net, 4, MULTS, dtype, 1.0, 0.0, rounds=2)
    readings.append(training.calibration("tiny", net, 4, MULTS, 2, None, 0.0, rounds=2))
    readings.append(training.augmentation(4, 32, 1.0, 0.0))
    readings.append(sampling.bookkeeping("tiny", net, MULTS, (0.25, 1.0), 4, 0.0, steps=300))
    readings += [search.paths("tiny", net, MULTS, count, 1.0, 0.0) for count in (1, 3)]
    readings.append(search.budgets("tiny", net, MULTS, 5, 0.0, rounds=2))
    step = 0.05 * structures.priced(net).dearest
    readings += [structures.sampled("tiny", net, step, count, 1.0, 0.0) for count in (1, 5)]
    readings.append(structures.costed("tiny", net, 1000, 0.0))
    gated = DSMobileNet(5, 32, strides=(2, 2, 2), fixed=(8, 8), grid=((8, 8, 1),), num_choices=3)
    readings += dynamic.grouped("tiny", gated, (1, 64), 0.0)
    compiled = 1 + bool(shutil.which(os.environ.get("CC", "cc")))
    assert [reading.gate for reading in readings] == [
        "C1", "C1", "C1", "C5", "C1", *["C8"] * compiled, *["C7"] * compiled, "C12", "C13", "C11", "C14", "C14", "C15",
        "C9", "C9", "C10", *["C16"] * 12]
    assert next(each for each in readings if each.gate == "C12").met is None
    assert all(reading.value > 0 for reading in readings)
    assert all(len(program.row(reading)) <= 130 for reading in readings)


def test_ratios_are_of_the_same_round_and_of_the_faster_ideal(program, monkeypatch):
    from benchmarks import clock

    taken = {"slow": [9.0, 0.1, 9.0], "plain": [1.0, 2.0, 4.0], "ours": [3.0, 2.0, 16.0]}
    monkeypatch.setattr(clock, "interleave", lambda variants, seconds, rounds: taken)
    reading = clock.compare("C0", "what", dict.fromkeys(taken), 3.5, 0.0, ideals=2)
    assert (reading.value, reading.low, reading.high) == (3.0, 1.0, 4.0) and reading.met
    assert reading.ms == {"slow": 9000.0, "plain": 2000.0, "ours": 3000.0} and reading.rounds == 3
