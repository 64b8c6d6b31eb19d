# The book as a graph: each chapter is executed at smoke scale, then all of them become one web site.
# `make book` runs it through tools/book.py. By hand: snakemake --cores 2 --rerun-triggers params mtime

import sys
from pathlib import Path

from slimnb.book.notebook import content_key

CHAPTERS = sorted(path.stem for path in Path("notebooks").glob("[0-9][0-9]_*.py"))
SMOKE = {"scale": "smoke"}
# The page of public names is made from the library's docstrings.
SITE = [p for folder in ("book", "examples", "slimnb") for p in Path(folder).rglob("*")
        if p.is_file() and not any("__pycache__" in part or part.endswith(".egg-info") for part in p.parts)]


def key(wildcards):
    """What the chapter's outputs follow from, by content: its code, what that reaches, Python and torch.

    Its prose does not count: tools/book.py puts it into what is executed already.
    """
    return content_key(f"notebooks/{wildcards.name}.py", SMOKE)


rule book:
    input:
        "build/html/index.html",


rule chapter:
    input:
        # Only the key decides whether this is stale; a fresh checkout's dates mean nothing.
        ancient("notebooks/{name}.py"),
    output:
        # update: snakemake deletes an output before its job starts, ours is replaced only by a whole one.
        update("build/smoke/{name}.ipynb"),
    params:
        key=key,
        python=sys.executable,
    shell:
        "{params.python:q} -m slimnb run {input:q} --scale smoke --out {output:q}"


rule site:
    input:
        executed=expand("build/smoke/{name}.ipynb", name=CHAPTERS),
        source=SITE,
    output:
        "build/html/index.html",
    params:
        python=sys.executable,
    shell:
        "{params.python:q} tools/website.py {input.executed:q}"
