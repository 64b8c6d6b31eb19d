"""Measure, print the table, store it: `python -m benchmarks [--quick] [--only C1 C8] [--out FILE]`."""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import costs, dynamic, inference, sampling, search, structures, training
from benchmarks.clock import Reading
from slimnb.nets.mobilenet import MobileNetV1, MobileNetV2
from slimnb.nets.resnet import ResNet50
from slimnb.papers.ds_net.nets import DSMobileNet
from slimnb.runs.files import to_json
from slimnb.runs.fingerprint import machine_fingerprint

WIDTHS = (0.25, 0.5, 0.75, 1.0)
GATES = ("C1", "C5", "C7", "C8", "C9", "C10", "C11", "C12", "C13", "C14", "C15", "C16")
FULL, PARTIAL = Path("data/benchmarks.json"), Path("build/benchmarks.json")


def measure(gates: Sequence[str], quick: bool) -> Iterator[Reading]:
    """The readings of `gates`, each as soon as it is there.

    `quick` takes fewer rounds and leaves out ResNet-50 at batch 64.
    """
    seconds, rounds = (0.5, 3) if quick else (3.0, 7)
    small = MobileNetV1(100, 32)
    if "C1" in gates:
        yield from _slices(quick, seconds)
    if "C5" in gates:
        yield inference.switching("MobileNetV1", MobileNetV1(1000, 224), WIDTHS, seconds)
        yield inference.switching("ResNet-50", ResNet50(1000, 224), WIDTHS, seconds)
    for gate, dtype, goals in (("C7", torch.bfloat16, (0.42, 0.33)), ("C8", torch.float32, (0.55, 0.50))):
        for batch, goal in zip((64,) if quick else (64, 128), goals, strict=False):
            if gate in gates:
                yield from training.sandwich(gate, "MobileNetV1", small, batch, WIDTHS, dtype, goal, 5 * seconds,
                                             rounds)
    if "C9" in gates:
        for name, family in (("MobileNetV1", MobileNetV1), ("MobileNetV2", MobileNetV2)):
            for count, goal in ((1000, 20.0), (1, 1.0)):
                yield structures.sampled(name, family(1000, 224), 10e6, count, goal, seconds)
    if "C10" in gates:
        every = [round(0.25 + 0.025 * i, 3) for i in range(31)]
        yield costs.predicted("MobileNetV1", small, every, 100_000, 10 if quick else 50, seconds)
        yield structures.costed("MobileNetV1", MobileNetV1(1000, 224), 1_000_000, seconds)
    if "C12" in gates:
        steps = 2 if quick else 5
        yield training.calibration("MobileNetV1", small, 64, WIDTHS, steps, 0.65, 3 * seconds, rounds)
    if "C13" in gates:
        yield training.augmentation(128, 32, 0.15, seconds)
    if {"C11", "C14", "C15"} & set(gates):
        yield from _searches(gates, seconds, rounds)
    if "C16" in gates:
        yield from dynamic.grouped("DS-MBNet", DSMobileNet(100, 32), (64,) if quick else (1, 16, 64, 256), seconds)


def _slices(quick: bool, seconds: float) -> Iterator[Reading]:
    cases = [("MobileNetV1", MobileNetV1, 1, 224), ("MobileNetV1", MobileNetV1, 64, 32),
             ("ResNet-50", ResNet50, 1, 224)] + [("ResNet-50", ResNet50, 64, 32)] * (not quick)
    found = []
    for name, family, batch, side in cases:
        net = family(1000 if side == 224 else 100, side)
        for reading in inference.sliced(name, net, batch, WIDTHS, seconds):
            found.append(reading)
            yield reading
    yield inference.summary(found)


def _searches(gates: Sequence[str], seconds: float, rounds: int) -> Iterator[Reading]:
    wide, mults = MobileNetV1(100, 32, 1.5), [round(0.2 + 0.1 * i, 1) for i in range(14)]
    if "C11" in gates:
        targets = [0.25 + 0.125 * k for k in range(7)]
        yield sampling.bookkeeping("MobileNetV1", wide, mults, targets, 128, seconds)
    if "C14" in gates:
        for count, goal in ((1, 0.1), (64, 1.2)):
            yield search.paths("MobileNetV1", wide, mults, count, goal, seconds)
    if "C15" in gates:
        yield search.budgets("MobileNetV1", wide, mults, 512, seconds, rounds)


def row(reading: Reading) -> str:
    """A line of the table."""
    unit = " ms" if reading.unit == "ms" else ""
    spread = f"{reading.value:.3f}{unit} [{reading.low:.2f}, {reading.high:.2f}]"
    met = {True: "yes", False: "NO", None: ""}[reading.met]
    goal = "" if reading.goal is None else f"<= {reading.goal:.2f}"
    return f"{reading.gate:4} {reading.what:78} {spread:26} {goal:9} {met}".rstrip()


def show(readings: Iterable[Reading]) -> list[Reading]:
    """Print each reading as it comes; returns them all."""
    print(f"{'gate':4} {'what':78} {'median [min, max]':26} {'goal':9} met")
    shown = []
    for reading in readings:
        print(row(reading), flush=True)
        shown.append(reading)
    for note in dict.fromkeys(reading.note for reading in shown if reading.note):
        print(f"  {note}")
    return shown


def report(readings: Sequence[Reading], quick: bool, busy: float) -> dict:
    """What is stored: the readings, and the machine they are of, without names."""
    machine = machine_fingerprint("cpu") | {"processor": _processor(), "cores": os.cpu_count(),
                                            "load at start": round(busy, 2)}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"torch": torch.__version__, "date": today, "quick": quick, "machine": machine,
            "clock": "processor time of the process, one thread, variants in turn",
            "readings": [reading.to_json() for reading in readings]}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "unknown")


def save(found: dict, path: Path) -> None:
    """Write `found` as JSON; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(to_json(found, indent=1) + "\n")
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; fewer rounds, fewer nets")
    parser.add_argument("--only", nargs="+", choices=GATES, default=GATES, metavar="GATE",
                        help="some of " + " ".join(GATES))
    parser.add_argument("--out", type=Path, help=f"JSON file ({FULL}, or {PARTIAL} if not all is measured)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    readings = show(measure(given.only, given.quick))
    whole = not given.quick and set(given.only) == set(GATES)
    path = given.out or (FULL if whole else PARTIAL)
    save(report(readings, given.quick, busy), path)
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
