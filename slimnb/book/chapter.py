"""What each chapter does: check parameters, say where it runs, keep figures and claims, print library code.

The set-up cell calls `chapter = Chapter.begin("01_slimmable_networks", globals(), widths=Numbers(1.0))`, the
last cell `chapter.end()`. torch is imported only after the parameters have passed.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimnb.book.parameters import COMMON, Rule, check_parameters, refuse
from slimnb.errors import BookError, ParameterError
from slimnb.runs.definitions import shown
from slimnb.runs.files import check_place, data_folder, find_root, sweep

END = "slimnb_end"  # key in the metadata of the last cell's output: the chapter ran to its end
FIRST_REAL_DATA = {"smoke": "synthetic", "small": "cifar100", "full": "cifar100"}


def literature(paper: str) -> Path:
    """The file of a paper's printed numbers in the repository: data/literature/sp_net.csv. Raises BookError without."""
    path = find_root() / f"data/literature/{paper}.csv"
    if not path.is_file():
        raise BookError(f"data/literature/{paper}.csv", "there is no such file",
                        "Work in a clone of the repository: papers' printed numbers are no part of the package.")
    return path


@dataclass(frozen=True)
class Chapter:
    """One chapter's run: its checked parameters and the places it writes to. `Chapter.begin` makes it."""

    name: str
    parameters: Mapping[str, Any]
    device: str  # "cpu", "cuda" or "cuda:N"; "auto" is resolved
    root: Path
    started: float = field(default_factory=time.monotonic)
    begun: bool = False

    @classmethod
    def begin(cls, name: str, namespace: Mapping[str, Any], **rules: Rule) -> Chapter:
        """Check the chapter's parameters (its globals) and print one line on what runs where.

        `name` is that of a chapter, as in "01_slimmable_networks", or of a paper without one.
        `rules` name the chapter's own parameters, as in `lr=Float()`. Raises SlimnbError with ParameterError.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{1,62}", name):
            raise refuse("chapter", name, "must be a-z 0-9 _ -, as in 01_slimmable_networks", "Rename it.")
        if any(isinstance(value, cls) and value.begun for value in namespace.values()):
            # The set-up cell is run again, and later cells have made names of their own.
            namespace = {key: value for key, value in namespace.items() if key in COMMON or key in rules}
        parameters = check_parameters(namespace, rules)
        device, label = _resolve_device(parameters["device"])
        chapter = cls(name, parameters, device, find_root(), begun=True)
        if parameters["out"]:
            check_place(chapter.out / "figure.svg")  # before anything is trained
        for folder in (chapter.out, chapter.ledger.parent):
            sweep(folder)
        many = "" if chapter.seeds == 1 else f" to {chapter.seed + chapter.seeds - 1}"
        data = chapter.data_name if chapter.parameters["data"] in ("auto", chapter.data_name) else "a folder"
        print(f"scale {chapter.scale} | seed {chapter.seed}{many} | data {data} | {label}")
        return chapter

    @property
    def scale(self) -> str:
        """smoke, small or full."""
        return self.parameters["scale"]

    @property
    def seed(self) -> int:
        """The first seed."""
        return self.parameters["seed"]

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return self.parameters["seeds"]

    @property
    def all_seeds(self) -> range:
        """The seeds to run: seed, seed + 1, ..."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def data_name(self) -> str:
        """What `slimnb.data.datasets.load_data` takes: synthetic at smoke, CIFAR-100 above, or what `data` names.

        A relative folder counts from the repository's root, whether Lab or papermill runs the chapter.
        """
        data = self.parameters["data"]
        if data == "auto":
            return FIRST_REAL_DATA[self.scale]
        return str(self.root / os.path.expanduser(data)) if re.search(r"[/\\]", data) else data

    @property
    def data_root(self) -> Path:
        """The folder of data sets, see `slimnb.runs.files.data_folder`."""
        return data_folder(self.root)

    @property
    def out(self) -> Path:
        """The folder of this chapter's figures: `out` if given; else build/ at smoke, figures/ above."""
        number = re.match(r"[0-9]{2}(?=_)|.*", self.name)[0]
        if self.parameters["out"]:
            return self.root / Path(self.parameters["out"]).expanduser() / number
        return self.root / ("build/figures" if self.scale == "smoke" else "figures") / number

    def save(self, axes: Any, name: str, alt: str = "") -> None:
        """Write the figure of `axes` (Axes, an array of them, or the Figure) to `out`/name.svg and show it.

        The same numbers give the same bytes. `alt` describes the figure to a reader who cannot see it; the book's own
        figures bring their description along.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,79}", name):
            raise refuse("figure name", name, "must be 1 to 80 of a-z 0-9 _ -", "Rename the figure.")
        from slimnb.book import style

        panels = getattr(axes, "axes", axes)  # a Figure's panels; an Axes is its own
        if alt or not hasattr(style.figure_of(panels), "slimnb_alt"):
            style.described(panels, alt or name)
        _show(style.save(panels, self.out / f"{name}.svg"))

    def claim(self, claim: Any, a: Any, b: Any = None, runs: Iterable[str] = ()) -> Any:
        """Judge a `slimnb.book.claims.Claim` by its arms at this scale, and enter the verdict in the ledger.

        Arrays are as in `slimnb.book.claims.judge`. Smoke verdicts go to a ledger of their own under build/.
        """
        from slimnb.book import claims

        verdict = claims.judge(claim, a, b, scale=self.scale, runs=runs)
        return claims.record(self.ledger, verdict)[0]

    @property
    def ledger(self) -> Path:
        """The file in which this chapter's verdicts are entered."""
        return self.root / ("build/smoke/claims.csv" if self.scale == "smoke" else "data/claims.csv")

    def end(self) -> None:
        """Say how long the chapter took, and leave the mark that tells `slimnb.book.execute` that it ran to its end."""
        text = (
            f"{self.name}: finished at scale {self.scale} in {time.monotonic() - self.started:.0f} s{_peak()}"
        )
        if not _show({"text/plain": text}, raw=True, metadata={END: self.name}):
            print(text)


def source(*things: Any) -> Any:
    """The library's code of functions, methods or classes as a notebook shows it (Markdown), without docstrings.

    Raises ParameterError for what has no Python source.
    """
    from IPython.display import Markdown

    texts = []
    for thing in things:
        try:
            texts.append(shown(inspect.getsource(thing)))
        except (TypeError, OSError):
            raise refuse("source of", thing, "has no Python source", "Give a function, method or class.") from None
    return Markdown("```python\n{}\n```".format("\n\n".join(texts)))


def _show(thing: Any, **options: Any) -> bool:
    """Display `thing` as a notebook cell's output; False where there is no notebook."""
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        return False
    from IPython.display import display

    display(thing, **options)
    return True


def _resolve_device(device: str) -> tuple[str, str]:
    import torch

    count = torch.cuda.device_count()
    device = ("cuda" if count else "cpu") if device == "auto" else device
    version = f"torch {torch.__version__.split('+')[0]}"
    if device == "cpu":
        return (
            device,
            f"cpu, {torch.get_num_threads()} thread{'s'[: torch.get_num_threads() > 1]} | {version}",
        )
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        there = f"there are cpu and {count} CUDA device{'s'[: count != 1]}"
        raise ParameterError(f"device = {device!r}", there, "Set device='auto'.")
    return device, f"{torch.cuda.get_device_name(index)} | {version}"


def _peak() -> str:
    try:
        import resource
    except ImportError:  # not on Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", peak memory {peak / (2**30 if os.uname().sysname == 'Darwin' else 2**20):.1f} GB"
