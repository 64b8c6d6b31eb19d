"""The command line: `python -m slimnb run 01 --scale small -p seeds 3`, `runs`, `claims`, `figures`.

Arguments are checked before anything heavy is imported: a misspelt parameter costs a second, not a minute.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Union

import tyro

from slimnb.book.parameters import COMMON, Choice, Int
from slimnb.errors import BookError, ParameterError, SlimnbError, exit_with, printable
from slimnb.rules import short
from slimnb.runs.files import os_error
from slimnb.runs.lock import stopping


@dataclass(frozen=True)
class RunCommand:
    """Execute a chapter with papermill and keep the result only if it is whole."""

    notebook: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHAPTER")]
    """A chapter's file, or the start of its name: notebooks/00_notation.py, 00_notation, 00."""
    scale: str | None = None
    """smoke, small or full; without it, what the parameters cell says."""
    parameters: Annotated[
        tuple[tuple[str, str], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(aliases=["-p"], metavar="NAME VALUE"),
    ] = ()
    """Another parameter and its value; may be repeated: -p seeds 3 -p device cuda."""
    out: Path | None = None
    """Where the executed notebook (.ipynb) goes; without it, build/SCALE/NAME.ipynb."""
    publish: bool = False
    """Put the executed notebook beside its text, as the pair a reader of the repository sees."""
    echo: bool = False
    """Print what the cells print while they run."""
    timeout: int | None = None
    """Seconds that one cell may take; without it, an hour at smoke and any time above."""
    allow_drift: bool = False
    """Go on with a run that was begun on another machine or with other threads; its result says so."""


@dataclass(frozen=True)
class TrainCommand:
    """Train the runs of a chapter, or of a paper without one, which its notebook then finds; also under torchrun.

    Ranks that normalise by their own rows make runs of their own: SLIMNB_RANKS=2 lets a notebook find those of two.
    """

    notebook: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHAPTER")]
    """A chapter's file, or the start of its name: 01. Or a paper's name: pss_net, or one of another package."""
    scale: str = "small"
    """smoke, small or full."""
    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Number of seeds."""
    arm: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Only this arm, e.g. "US-Net"; may be repeated. One that builds on others wants them finished or named, too."""
    data: str = "auto"
    """synthetic, cifar10, cifar100 or a folder of images; auto is the scale's own."""
    device: str = "auto"
    """auto, cpu or cuda."""
    commit: bool = False
    """Also write the small records that the repository keeps, under data/results."""
    allow_drift: bool = False
    """Go on with a run that was begun on another machine or with other threads; its result says so."""


@dataclass(frozen=True)
class FetchCommand:
    """Download a public data set and check it: cifar10 or cifar100."""

    name: Annotated[str, tyro.conf.Positional]
    """cifar10 or cifar100."""


@dataclass(frozen=True)
class FiguresCommand:
    """Draw the committed figures again from finished runs; trains nothing."""

    scale: str = "small"
    """The scale whose runs are drawn."""


@dataclass(frozen=True)
class RunsCommand:
    """List the runs in the run store: finished, interrupted and committed ones."""

    commit: str | None = None
    """A paper, e.g. ds_net: write the records of all its finished runs at `scale`, on any data, to data/results."""
    scale: str = "small"
    """The scale whose runs are committed."""


@dataclass(frozen=True)
class ClaimsCommand:
    """List the claims and their verdicts, recomputed from the ledger."""

    smoke: bool = False
    """The smoke ledger under build/ instead of the committed one."""


def main(arguments: list[str] | None = None) -> None:
    """Parse `arguments` (default: the process's own) and run the command; exit status as in slimnb.errors."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    for number, name in enumerate(("stdout", "stderr"), 1):
        if getattr(sys, name) is None:  # it was closed before we began, as by >&-
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.set_inheritable(number, True)  # for the kernel
            setattr(sys, name, open(number, "w", encoding="utf-8"))  # noqa: SIM115 - it stays open to the end
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows an arrow as \\u2192
    try:
        command = read_command([a for a in arguments if a != "--debug"])
        with stopping:
            COMMANDS[type(command)](command)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, as `head` does, has gone: leave as other programs do
        _drop_output()
        raise SystemExit(141) from None
    except (SlimnbError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # the output itself could not be written
            _drop_output()
        if debug:
            raise
        exit_with(error if isinstance(error, SlimnbError) else os_error(error, Path(error.filename or "output")))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _drop_output() -> None:
    """Send what is left to print nowhere, or Python would try again at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_command(arguments: list[str]) -> object:
    """Return the command that `arguments` stand for, an object of one class in COMMANDS. Raises ParameterError.

    With --help it prints the help and leaves the process with status 0.
    """
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    if twice := next((f for f in flags if flags.count(f) > 1 and f not in ("--arm", "--parameters")), None):
        raise ParameterError(short(twice), "is written twice, and one value would be lost", "Write it once.")
    # tyro would name a command by its class.
    kinds = tuple(Annotated[kind, tyro.conf.subcommand(work.__name__)] for kind, work in COMMANDS.items())
    about = (__doc__ or "").partition("\n")[0]  # there is none under python -OO
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                tyro.conf.OmitSubcommandPrefixes[tyro.conf.FlagCreatePairsOff[Union[kinds]]],  # noqa: UP007 - it is not known before
                args=arguments,
                prog="slimnb",
                description=f"{about} Add --debug for a traceback.",
            )
    except (SystemExit, AssertionError) as end:
        if isinstance(end, SystemExit) and not end.code:
            raise
        # tyro draws a box around its reasons, with dashes on an ASCII terminal; its title says the same again.
        lines = [line.strip("│ ") for line in messages.getvalue().splitlines()[1:] if re.search(r"[^\s│╰╯─-]", line)]
        why = re.sub(r" For full helptext.*", "", " ".join(" ".join(lines).split())) or str(end)
        raise ParameterError("command line", why[:140].strip(". "), "See `slimnb --help`.") from None


def run(command: RunCommand) -> None:
    """Execute one chapter. Raises SlimnbError."""
    from slimnb.book.chapter import find_root
    from slimnb.book.notebook import declared_by, read_chapter

    source = find_chapter(command.notebook)
    declared = declared_by(read_chapter(source))
    pairs = [*command.parameters, *([("scale", command.scale)] if command.scale is not None else [])]
    words = dict(pairs)
    if twice := next((name for name in words if [key for key, _ in pairs].count(name) > 1), None):
        how = "-p scale and --scale" if (twice, command.scale is None) == ("scale", False) else f"-p {short(twice)}"
        raise ParameterError(how, "is given twice, and one value would be lost", "Give it once.")
    values = {name: declared.read(name, text) for name, text in words.items()}
    scale = declared.check(values)["scale"]

    from slimnb.book.execute import execute

    timeout = 3600 if command.timeout is None and scale == "smoke" else command.timeout
    if timeout is not None:
        Int(1, 10**7).check("timeout", timeout)
    if command.publish and command.out is not None:
        raise ParameterError("--publish and --out", "both say where the output goes", "Give one of them.")
    if command.allow_drift:
        os.environ["SLIMNB_ALLOW_DRIFT"] = "1"  # for the kernel, where slimnb.train.experiment reads it
    out = command.out or find_root(source.parent) / "build" / scale / f"{source.stem}.ipynb"
    if command.publish:
        out = source.with_suffix(".ipynb")
    execute(source, out, values, echo=command.echo, timeout=timeout)


def find_chapter(text: str) -> Path:
    """Return the one chapter's file that `text` names, by its path or the start of its name. Raises BookError."""
    if os.path.isfile(text):  # Path.is_file raises for a name that is too long
        return Path(text)
    there = chapters()
    match = [path for path in there if path.stem.startswith(text) and text]
    if len(match) != 1:
        names = f"There are: {', '.join(path.stem for path in there)}."[:130]
        raise BookError(short(text), f"names {len(match)} chapters", names)
    return match[0]


def chapters() -> list[Path]:
    """Return the book's chapters in their order. Raises BookError where there are none."""
    from slimnb.book.chapter import find_root

    folder = find_root() / "notebooks"
    if not (there := sorted(folder.glob("[0-9][0-9]_*.py"))):
        raise BookError("notebooks/", f"there is no chapter in {short(str(folder.parent), 60)}",
                        "Work in a clone of the repository: the chapters are no part of the package.")
    return there


def train(command: TrainCommand) -> None:
    """Train, resume or find the runs of a scale, one after the other. Raises SlimnbError."""
    from slimnb import plugins
    from slimnb.book.chapter import Chapter

    parameters = {"scale": command.scale, "seed": command.seed, "seeds": command.seeds, "device": command.device,
             "data": command.data, "out": ""}
    is_paper = command.notebook in plugins.names("papers")
    chapter = Chapter.begin(command.notebook if is_paper else find_chapter(command.notebook).stem, parameters)

    from slimnb.data.datasets import load_data
    from slimnb.runs.store import RunStore
    from slimnb.train import distributed, experiment

    stages = experiment.paper_of(chapter.name).STAGES
    group = distributed.start(torch_kind(chapter.device))
    root = chapter.root / "data"
    images = load_data(chapter.data_name, chapter.data_root, chapter.device, cache=root / "cache")
    store = RunStore(root / "runs", root / "results")
    results = experiment.study(stages, chapter.scale, chapter.all_seeds, images, store, arms=command.arm,
                               device=chapter.device, group=group, allow_drift=command.allow_drift)
    if distributed.rank_of(group) == 0:
        for result in results:
            rows = (f"{row['name'] if 'name' in row else format(row['mult'], 'g') + 'x'} {row['top1']:.1f} %"
                    for row in result.rows)
            print(f"{result.recipe.label}: {', '.join(rows)}", flush=True)
        if command.commit:
            recipes = [result.recipe for result in results]
            for path in experiment.commit(recipes, images, store, root / "results" / recipes[0].paper):
                print(path.relative_to(chapter.root))
    distributed.finish()


def torch_kind(device: str) -> str:
    """Return "cpu" or "cuda" for a device's name."""
    return device.partition(":")[0]


def fetch(command: FetchCommand) -> None:
    """Download and decode a public data set into $SLIMNB_DATA, else data/. Raises SlimnbError."""
    from slimnb.data.datasets import load_data
    from slimnb.data.sources import CIFAR
    from slimnb.runs.files import find_root

    Choice(tuple(CIFAR)).check("fetch", command.name)
    print(load_data(command.name, cache=find_root() / "data" / "cache", download=True))


def figures(command: FiguresCommand) -> None:
    """Execute every chapter with training forbidden, which draws its figures. Raises SlimnbError."""
    sources = chapters()
    from slimnb.book.chapter import find_root
    from slimnb.book.execute import execute
    from slimnb.train import experiment

    os.environ[experiment.NO_TRAINING] = "1"
    for source in sources:
        execute(source, find_root() / "build" / "figures" / f"{source.stem}.ipynb", {"scale": command.scale})


def runs(command: RunsCommand) -> None:
    """Print one line per finished run of the store, and the names of the unfinished ones."""
    from slimnb.book.chapter import find_root
    from slimnb.runs.store import RunStore

    COMMON["scale"].check("scale", command.scale)
    root = find_root() / "data"
    store = RunStore(root / "runs", root / "results")
    if command.commit is not None:
        from slimnb import plugins
        from slimnb.train.experiment import commit_all

        Choice(tuple(plugins.names("papers"))).check("commit", command.commit)
        for path in commit_all(command.commit, command.scale, store, root / "results" / command.commit):
            print(path.relative_to(root.parent))
        return
    records = store.records()
    for record in records:
        place = "local" if (store.root / record["run_id"]).is_dir() else "committed"
        print(f"{record['run_id']:58} {place:9} {record['result'].get('seconds', 0):7.0f} s")
    done = {record["run_id"] for record in records}
    for path in sorted(store.root.glob("*/")):
        if path.name not in done:
            print(f"{printable(path.name):58} unfinished; running its chapter again resumes it")
    if not records:
        print("No run is finished yet. `make book` trains the smoke runs.")


def claims(command: ClaimsCommand) -> None:
    """Print the ledger, one line per claim and scale."""
    from slimnb.book.chapter import find_root
    from slimnb.book.claims import ledger_frame, tally

    path = find_root() / ("build/smoke/claims.csv" if command.smoke else "data/claims.csv")
    frame = ledger_frame(path)
    columns = ["scale", "claim", "family", "verdict", "seeds_run", "mean", "low", "high", "unit"]
    if frame.empty:
        print(f"No claim is recorded yet in {path.relative_to(path.parents[1])}.")
    else:
        print(frame[columns].to_string(index=False))
        for scale, rows in frame.groupby("scale"):
            print(f"{scale}: {tally(rows)}")


COMMANDS = {RunCommand: run, TrainCommand: train, FetchCommand: fetch, FiguresCommand: figures, RunsCommand: runs,
            ClaimsCommand: claims}


if __name__ == "__main__":
    try:
        main()
    finally:
        for number in stopping.SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # nothing is left to stop, and Python takes a second to end
