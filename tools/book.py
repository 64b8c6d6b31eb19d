"""Build the book with snakemake: one build at a time, and none hindered by one that was killed.

A killed snakemake leaves its lock and half-known outputs behind. The lock that counts is ours, held by the
running process and freed by the system with it; under it, snakemake's own can be removed safely.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from slimnb.book.execute import refresh_prose
from slimnb.book.notebook import is_current

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile"]
OPTIONS = ["--quiet", "all", "--scheduler", "greedy", "--keep-going", "--rerun-incomplete"]
OPTIONS += ["--rerun-triggers", "params", "mtime"]
BUSY = "slimnb: BusyError: another process is building the book. Wait for it."


def outdated() -> list[str]:
    """Executed chapters that are not of today's code; the others are given today's prose.

    Of outputs that something else has made, such as the tests, snakemake has no record: it would take any for current.
    """
    found = []
    for path in sorted(Path("notebooks").glob("[0-9][0-9]_*.py")):
        out = Path("build/smoke") / f"{path.stem}.ipynb"
        if is_current(path, out, {"scale": "smoke"}):
            refresh_prose(path, out)
        elif out.exists():
            found.append(str(out))
    return found


def main() -> int:
    """Run the workflow from the repository's root; return snakemake's exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cores", type=int, default=2, help="chapters executed side by side")
    cores = parser.parse_args().cores
    os.chdir(Path(__file__).resolve().parents[1])
    Path("build").mkdir(exist_ok=True)
    lock = open("build/.book.lock", "w")  # noqa: SIM115 - held until this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(BUSY, file=sys.stderr)
        return 75
    if any(Path(".snakemake/locks").glob("*")):
        subprocess.run([*SNAKEMAKE, "--unlock", "--quiet", "all"], check=False)
    started = time.monotonic()
    force = ["--forcerun", *old] if (old := outdated()) else []
    done = subprocess.run([*SNAKEMAKE, *OPTIONS, *force, "--cores", str(cores)], check=False)
    if done.returncode == 0:
        print(f"The book is at build/html/index.html ({time.monotonic() - started:.0f} s)")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
