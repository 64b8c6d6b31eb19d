"""Whatever part of the unsynced bytes and names a power cut takes, an acknowledged save is there."""

import os
import random
from pathlib import Path

import pytest
from small_runs import RECIPE, ROWS, tensors

from slimnb.runs.store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs", tmp_path / "results")


class Disk:
    """Records what a process did to a folder, and what of it a power cut may leave.

    A byte is safe once its file was synced, a name once its folder was; the rest may be there or not.
    """

    def __init__(self, patch, folder):
        self.folder, self.log, self.real, self.paths, self.files = folder, [], {}, {}, {}
        for name in ("open", "write", "fsync", "replace", "unlink", "ftruncate"):
            self.real[name] = getattr(os, name)
            patch.setattr(os, name, getattr(self, name))

    def open(self, path, flags, *args, **kwargs):
        fd = self.real["open"](path, flags, *args, **kwargs)
        self.paths[fd] = str(path)
        if flags & os.O_CREAT and os.fstat(fd).st_size == 0:
            # Inode numbers are used again after a deletion; ours are not.
            self.files[os.fstat(fd).st_ino] = len(self.log)
            self.log.append(("create", self.file(fd), str(path)))
        return fd

    def file(self, fd):
        return self.files.get(os.fstat(fd).st_ino)

    def write(self, fd, data):
        self.log.append(("write", self.file(fd), bytes(data)))
        return self.real["write"](fd, data)

    def ftruncate(self, fd, size):
        self.log.append(("truncate", self.file(fd), size))
        return self.real["ftruncate"](fd, size)

    def fsync(self, file):
        fd = file if isinstance(file, int) else file.fileno()
        folder = Path(self.paths[fd]).is_dir()
        self.log.append(("syncdir",) if folder else ("sync", self.file(fd)))
        return self.real["fsync"](fd)

    def replace(self, old, new):
        self.log.append(("rename", str(old), str(new)))
        return self.real["replace"](old, new)

    def unlink(self, path, **kwargs):
        self.log.append(("unlink", str(path)))
        return self.real["unlink"](path, **kwargs)

    def after_cut(self, length, rng):
        """Name -> bytes of one state possible when power fails after `length` operations."""
        names, pending, content, safe = {}, [], {}, {}
        for kind, *args in self.log[:length]:
            if kind == "write":
                content[args[0]] = content.get(args[0], b"") + args[1]
            elif kind == "truncate":
                content[args[0]] = content.get(args[0], b"")[: args[1]]
            elif kind == "sync":
                safe[args[0]] = content.get(args[0], b"")
            elif kind == "syncdir":
                names = apply(names, pending)
                pending = []
            else:
                pending.append((kind, args))
        lasting = apply(names, [op for op in pending if rng.random() < 0.5])
        return {name: self.survivor(file, content, safe, rng) for name, file in lasting.items()}

    @staticmethod
    def survivor(file, content, safe, rng):
        now, sure = content.get(file, b""), safe.get(file, b"")
        if now.startswith(sure):  # grown since: any part of the growth
            return now[: rng.choice((len(sure), len(now), rng.randint(len(sure), len(now))))]
        return rng.choice((now, sure))


def apply(names, operations):
    """A folder's names after some operations; one whose source is not there does nothing."""
    names = dict(names)
    for kind, args in operations:
        if kind == "create":
            names[args[1]] = args[0]
        elif kind == "rename" and args[0] in names:
            names[args[1]] = names.pop(args[0])
        elif kind == "unlink":
            names.pop(args[0], None)
    return names


def test_power_cut_leaves_the_last_acknowledged_step_or_a_newer(store, tmp_path, monkeypatch, capsys):
    acknowledged = []
    with monkeypatch.context() as patch:
        run = store.open(RECIPE, "code", "data")
        disk = Disk(patch, run.path)
        with run.lock():
            run.load()
            for step in range(1, 6):
                run.log({"step": step})
                run.save(step, tensors(step), {})
                acknowledged.append((len(disk.log), step))
            run.finish({"rows": ROWS})
            acknowledged.append((len(disk.log), "end"))
    rng = random.Random(3)
    for trial in range(300):
        length = rng.randint(1, len(disk.log))
        sure = [step for at, step in acknowledged if at <= length]
        files = disk.after_cut(length, rng)
        after = RunStore(tmp_path / f"cut{trial}", tmp_path / "results")
        again = after.open(RECIPE, "code", "data")
        again.path.mkdir(parents=True)
        for name, data in files.items():
            (again.path / Path(name).name).write_bytes(data)
        if again.result() is None:
            assert "end" not in sure
            with again.lock():
                found = again.load()
                step = found[1]["step"] if found else 0
                assert step >= (sure[-1] if sure else 0)
                assert [e["step"] for e in again.events()] == list(range(1, step + 1))
    capsys.readouterr()
