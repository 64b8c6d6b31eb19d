"""The run store: a run is named by what it depends on, survives any kill, and is done once.

    <root>/<id>/ck-000007.safetensors    a generation of the state; the newest two are kept
                events.jsonl             one line per logged event
                weights.safetensors      final weights
                result.json              written last: its presence says the run is finished
                lock, owner.json         who is writing

Beside each file (but the last three lines) lies its SHA-256; a checkpoint and the result hold that of
the events too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimnb.errors import BusyError, StoreError
from slimnb.rules import checked
from slimnb.runs import checkpoint, files, lock, results
from slimnb.runs.checkpoint import check_like
from slimnb.runs.files import STAGES, Damaged, Failpoint, from_json, label, plain, to_json
from slimnb.runs.fingerprint import code_fingerprint, machine_fingerprint
from slimnb.runs.lock import stopping
from slimnb.runs.results import SCHEMA, results_frame

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FAILPOINTS", "Run", "RunStore", "check_like", "code_fingerprint", "machine_fingerprint",
    "results_frame",
]  # fmt: skip

KEPT = 2
FAILPOINTS = (
    *(f"{kind}{suffix}.{stage}"
      for kind in ("checkpoint", "weights", "result")
      for suffix in ("sum", "")
      for stage in STAGES),
    *(f"owner.{stage}" for stage in STAGES),
    "recover.swept", "recover.aside", "recover.truncated", "log.half", "log.written", "save.synced",
    "prune.one", "finish.committed",
)  # fmt: skip
"""Every place where SLIMNB_FAILPOINT=name:n can kill the process."""


class RunStore:
    """Runs under `root` (large, local) and their small committed results under `committed`."""

    @checked
    def __init__(self, root: str | os.PathLike = "data/runs", committed: str | os.PathLike = "data/results"):
        self.root, self.committed = Path(root), Path(committed)

    def open(
        self,
        recipe: dict[str, Any],
        code: str,
        data: str,
        machine: dict[str, Any] | None = None,
        allow_drift: bool = False,
    ) -> Run:
        """Return the run of this recipe, code fingerprint and data fingerprint; no file is touched.

        `machine` (of `machine_fingerprint`) is compared when an interrupted run resumes. On another machine that raises
        StoreError, unless `allow_drift` is true; the result then says so.
        """
        return Run(self, recipe, code, data, machine, allow_drift)

    def commit(self, run: Run, path: str | Path | None = None, points: int = 100) -> Path:
        """Write a finished run's record and at most `points` of its events as JSON, without weights.

        Return the path, by default `<committed>/<id>.json`. The same run gives the same bytes. Raises StoreError if the
        run is not finished.
        """
        record = run.record()
        if record is None:
            raise StoreError(f"run {run.id}", "it is not finished", "Train it to its end.")
        kept = {key: record[key] for key in record if key not in ("events", "weights")}
        kept["history"] = results.thin(run.events(), points)
        path = Path(path) if path is not None else self.committed / f"{run.id}.json"
        files.make_folder(path.parent)
        text = to_json(kept, "record", indent=1) + "\n"
        files.write_file(path, results.seal(text.encode()), Failpoint(), "commit")
        return path

    def record_of(self, run_id: str) -> dict[str, Any]:
        """Return the record of a finished run. Raises StoreError if there is none here."""
        for record in self.records():
            if record["run_id"] == run_id:
                return record
        raise StoreError(f"run {run_id}", "it is not on this machine", "Train or measure it here first.")

    def weights_of(self, run_id: str) -> dict[str, Tensor]:
        """Return the tensors of the net that a run has trained, by name (CPU). Raises StoreError without them."""
        record = self.record_of(run_id)
        run = self.open(record["recipe"], record["code"], record["data"])
        if not (run.path / "result.json").exists():
            raise StoreError(f"weights of run {run_id}", "they are not on this machine", "Train the run here first.")
        return {name.removeprefix("net/"): value for name, value in run.weights().items()}

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all finished runs by id; a local one goes before a committed one."""
        records = results.read_committed(self.committed)
        records += [results.read_record(path) for path in sorted(self.root.glob("*/result.json"))]
        by_id = {record["run_id"]: record for record in records}
        return [by_id[key] for key in sorted(by_id)]


class Run:
    """One run: its place, its state while it trains, its result afterwards. POSIX only.

    `id` is a hash of recipe, code and data, `recipe_id` one of recipe and data, `path` the folder. Writing needs `with
    run.lock():` and then one `run.load()`.
    """

    def __init__(
        self,
        store: RunStore,
        recipe: dict[str, Any],
        code: str,
        data: str,
        machine: dict[str, Any] | None = None,
        allow_drift: bool = False,
    ):
        self.store, self.code, self.data = store, code, data
        self.recipe, self.machine = plain(recipe, "recipe"), plain(machine, "machine")
        self.id, self.recipe_id = results.run_ids(self.recipe, code, data)
        self.path = store.root / self.id
        self.allow_drift, self.drifted = allow_drift, ""
        self._fail = Failpoint()
        self._generations = checkpoint.Generations(self.path, self._fail)
        self._owner: bytes | None = None  # what we wrote into owner.json; None without the lock
        self._events: checkpoint.Events | None = None  # open from load() to the end of the lock

    # ---- a finished run ----

    def record(self) -> dict[str, Any] | None:
        """Return the whole record if this run finished here or was committed, else None."""
        path = self.path / "result.json"
        if os.path.lexists(path):
            return results.read_record(path)
        return next((record for record in self._committed() if record["run_id"] == self.id), None)

    def result(self) -> dict[str, Any] | None:
        """Return what `finish` stored, and `run_id`; None if nobody has finished this run.

        It is looked up here, then among committed results of the same id, then among those of the same recipe and data
        by other code, which carry `stale_code: True`.
        """
        record = self.record()
        if record is not None:
            return results.payload(record)
        for record in self._committed():
            same = record.get("definitions") == self.code  # of records from before code was told by definitions
            return results.payload(record) | ({} if same else {"stale_code": True})
        return None

    def _committed(self) -> list[dict[str, Any]]:
        """Committed records of the same recipe and data."""
        records = results.read_committed(self.store.committed, self.recipe_id)
        return [record for record in records if record["recipe_id"] == self.recipe_id]

    def weights(self) -> dict[str, Tensor] | None:
        """Return the final tensors (CPU) of a run that finished here; None if it stored none."""
        record = self.record()
        if record is None or record.get("weights") is None:
            return None
        path = self.path / "weights.safetensors"
        try:
            data = files.read_checked(path)
            if files.digest(data) != record["weights"]:
                raise Damaged("not the weights its result names")
            return checkpoint.unpack(data)[0]
        except FileNotFoundError:
            raise results.damaged(path, "missing") from None
        except Damaged as error:
            raise results.damaged(path, str(error)) from None

    def events(self) -> list[dict[str, Any]]:
        """Return the logged events in order: this store's, else those committed with the result, which are fewer."""
        record = self.record()
        if record is not None and "history" in record:
            return record["history"]
        path = self.path / checkpoint.EVENTS
        data = files.read_file(path) if os.path.lexists(path) else b""
        if record is not None and record["events"] != checkpoint.mark(data):
            raise results.damaged(path, "its SHA-256 differs")
        whole = data[: data.rfind(b"\n") + 1]  # its owner may be in the middle of a line
        return [from_json(line, label(path)) for line in whole.splitlines()]

    # ---- one writer ----

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[Run]:
        """Be the only writer within `with`. If another process is, after `wait` seconds, raise BusyError.

        A signal to stop raises BusyError within it; a loop that polls `preempted` stands in `stopping.later()` (see
        `slimnb.runs.lock`). What a killed owner left half done is removed first.
        """
        files.refuse_link(self.path)
        files.make_folder(self.path)
        with stopping, lock.hold(self.path, wait, self._fail) as self._owner:
            try:
                self._generations.sweep()
                if os.path.lexists(self.path / "result.json"):
                    # Killed between its commit and this, a finished run still has its checkpoints.
                    self._generations.prune(0)
                yield self
            finally:
                if self._events is not None:
                    self._events.close()
                self._owner = self._events = None

    @property
    def preempted(self) -> bool:
        """Whether a signal asked to stop: then save at the end of the step and exit with 75."""
        return stopping.requested

    # ---- its state ----

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest good generation: its tensors (CPU), and meta with `step`; None for a new run.

        Events that were logged after it are dropped. A damaged generation is kept as `.bad`, and a line says so. So are
        events in which no generation finds its own; then the first new one says how many steps they lack. Raises
        StoreError if no generation is good.
        """
        self._need(loaded=False)
        state, bad = self._generations.newest(self._identity())
        tensors, header = state or ({}, {"events": checkpoint.mark(b""), "drifted": ""})
        self._check_machine(header)
        for path, reason in bad:
            print(f"slimnb: {label(path)}: {reason}. Kept as .bad; going on from step {header['step']}.")
            self._generations.set_aside(path)
        if self._events is not None:
            self._events.close()
        self._events = checkpoint.Events(self.path / checkpoint.EVENTS, header["events"], self._fail)
        if any(path.name == checkpoint.EVENTS for path, _ in bad):
            self.log({"lost": "events", "until": header["step"]})
            self.save(header["step"], tensors, header["meta"])  # with the mark of the new events
        return (tensors, header["meta"] | {"step": header["step"]}) if state else None

    @stopping.later()
    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Store the state after `step` as a new generation; the newest two are kept.

        Tensors may be of any device and layout; `meta` is plain JSON. Raises NumericsError for a NaN.
        """
        self._need()
        header = self._identity() | {"step": step, "meta": meta, "events": self._events.sync()}
        header |= {"machine": self.machine, "drifted": self.drifted}
        self._fail("save.synced")
        self._generations.add(tensors, header)
        self._generations.prune(KEPT)

    def log(self, event: dict[str, Any]) -> None:
        """Append one event (plain JSON) to the run's events."""
        self._need()
        self._events.append((to_json(event, "event") + "\n").encode())

    @stopping.later()
    def finish(self, result: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        """Commit the result for good, with final weights if `tensors` are passed; checkpoints are then removed."""
        self._need()
        result = plain(result, "result")
        for key in {"run_id", "stale_code", "resumed_with_drift"} & result.keys():
            raise StoreError(f"result.{key}", "the store writes that key", "Rename yours.")
        record = self._identity() | {"machine": self.machine, "result": result, "weights": None}
        record["events"] = self._events.sync()
        if self.drifted:
            record["resumed_with_drift"] = self.drifted
        if tensors is not None:
            data = checkpoint.pack(tensors, self._identity())
            path = self.path / "weights.safetensors"
            record["weights"] = files.write_checked(path, data, self._fail, "weights")
        text = to_json(record, "record", indent=1) + "\n"
        files.write_checked(self.path / "result.json", text.encode(), self._fail, "result")
        self._fail("finish.committed")
        self._generations.prune(0)

    def _identity(self) -> dict[str, Any]:
        ids = {"schema": SCHEMA, "run_id": self.id, "recipe_id": self.recipe_id}
        return ids | {"recipe": self.recipe, "code": self.code, "data": self.data}

    def _need(self, loaded: bool = True) -> None:
        """Refuse to write without the lock, before `load`, after the end, or when taken over."""
        wrong = None
        if self._owner is None:
            wrong = "written without its lock", "Use `with run.lock():`."
        elif os.path.lexists(self.path / "result.json"):
            wrong = "it is finished, and never overwritten", "Use run.result()."
        elif loaded and self._events is None:
            wrong = "written before it was loaded", "Call run.load() first."
        if wrong:
            raise StoreError(f"run {self.id}", *wrong)
        if not lock.owns(self.path, self._owner):
            why = "another process took it over while this one was paused"
            raise BusyError(f"run {self.id}", why, "Leave it to the other one.")

    def _check_machine(self, header: dict[str, Any]) -> None:
        self.drifted = header["drifted"] or ""
        before = header.get("machine")
        if None in (before, self.machine) or before == self.machine:
            return
        changed = results.changes(before, self.machine)[:80]
        if not self.allow_drift:
            why = f"begun on another machine, so not bit for bit: {changed}"
            fix = "Go on there, or with --allow-drift (in Python allow_drift=True)."
            raise StoreError(self.id, why, fix, "All is kept.")
        print(f"slimnb: {self.id} goes on with drift ({changed}); its result will say so.")
        self.drifted = f"{self.drifted}; {changed}" if self.drifted else changed
