"""A paper's claims as data: `claims.toml` beside its recipes.

    chapter = "01_slimmable_networks"
    trained = ["S-Net", "One BN"]       # the arms that claims compare: of recipes,
    derived = ["slice", "mask"]         # and what a chapter makes of results

    [one-bn-fails]                      # the id; the other fields of `Claim`
    statement = "With one batch norm for all widths the slimmest net fails"
    source = "S-Net (Yu et al. 2019)"
    family = "primary"
    arms = ["S-Net", "One BN"]
    metric = "top1"
    margin = 5
"""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import MISSING, fields
from importlib.resources import files

from slimnb import plugins
from slimnb.book.claims import Claim
from slimnb.errors import ParameterError

MOST_PRIMARY = 3  # per chapter: each further one costs five seeds, and makes the others harder to show


def claims_of(paper: str) -> dict[str, Claim]:
    """Return the claims of the paper of that name by their ids, none if it has no claims.toml.

    Raises ParameterError for a paper that there is not, and for a file with a mistake.
    """
    package = plugins.find("papers", paper).__name__.rpartition(".")[0]
    path = files(package) / "claims.toml" if package else None
    return read_claims(path.read_text(encoding="utf-8"), paper) if path and path.is_file() else {}


def read_claims(text: str, paper: str) -> dict[str, Claim]:
    """Return the claims that `text` (TOML) registers, by their ids; `paper` is for messages. Raises ParameterError."""
    def wrong(what: str, why: str, fix: str) -> ParameterError:
        return ParameterError(f"{paper[:40]}/claims.toml: {what[:90]}", why[:70], fix)

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # "Cannot declare ('x',) twice" for two claims of one id
        raise wrong(str(error), "it must be TOML, each id once", "Correct that line.") from None
    chapter, *arms = (table.pop(name, None) for name in ("chapter", "trained", "derived"))
    allowed = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(Claim) if f.name != "id"}
    known, claims = {str(arm) for group in arms if isinstance(group, list) for arm in group}, {}
    for id, values in table.items():
        if not isinstance(values, dict):
            raise wrong(f"{id} = {values!r}", "must be a table, or chapter, trained, derived", "Remove or correct it.")
        values = {"chapter": chapter} | values
        if unknown := sorted(set(values) - set(allowed)):
            raise wrong(f"{id}: {unknown[0]!r}", "is no field of a claim", "Remove or correct it.")
        if missing := sorted(name for name, needed in allowed.items() if needed and values.get(name) is None):
            raise wrong(f"{id}: no {missing[0]}", "a claim needs it", "Add it.")
        try:
            claim = claims[id] = Claim(id=id, **values)
        except ParameterError as error:
            raise wrong(f"{id}: {error.what}", error.why, error.fix) from None
        unknown = sorted(set(claim.arms) - known)
        if unknown and claim.kind != "exact":  # those of an exact claim are figures, not arms
            raise wrong(f"{id}: unknown arm {unknown[0]!r}", f"there are {', '.join(sorted(known))}",
                        "Correct it, or add it to trained or derived.")
    primary = Counter(claim.chapter for claim in claims.values() if claim.family == "primary")
    for chapter, many in primary.items():
        if many > MOST_PRIMARY:
            raise wrong(f"{many} primary claims in {chapter}", f"there may be {MOST_PRIMARY}", "Make some secondary.")
    return claims
