"""Records of finished runs: their identity, how they are read, and all of them as one table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimnb.errors import SlimnbError, StoreError
from slimnb.runs import files
from slimnb.runs.files import Damaged, digest, from_json, label, to_json

if TYPE_CHECKING:
    import pandas

SCHEMA = "slimnb.run/1"
SEAL = b',\n "sha256": "'
NAMED_BY = ("paper", "arm", "scale")
"""Recipe fields that begin a run's id, for the eye; the hash at its end is what identifies it."""


def run_ids(recipe: dict[str, Any], code: str, data: str) -> tuple[str, str]:
    """Return the run's id, a hash of all three, and its recipe id, of recipe and data; both are `[a-z0-9-]`."""
    words = "-".join(str(recipe[key]) for key in NAMED_BY if recipe.get(key))
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:40] or "run"
    whole = digest(to_json([recipe, code, data], "recipe"))
    partly = digest(to_json([recipe, data], "recipe"))
    return f"{slug}-{whole[:16]}", f"{slug}-{partly[:16]}"


def read_record(path: Path) -> dict[str, Any]:
    """Return the record in a run's result.json. Raises StoreError if it is damaged, another run's or schema's."""
    try:
        record = check_record(from_json(files.read_checked(path), label(path)), path)
    except Damaged as error:
        raise damaged(path, str(error)) from None
    if record["run_id"] != path.parent.name:
        raise damaged(path, "it is another run's result")
    return record


def seal(data: bytes) -> bytes:
    """Return the bytes of a committed record (indented JSON) with the SHA-256 of all before it as their last key."""
    body = data.removesuffix(b"\n}\n")
    return body + SEAL + digest(body).encode() + b'"\n}\n'


def read_committed(folder: Path, mention: str = "") -> list[dict[str, Any]]:
    """Return the records in the JSON files under a folder, by path; other JSON files are passed over.

    Only files that `mention` a text are parsed, so that one run is quickly found among hundreds; the checksum of each
    record is compared all the same. Raises StoreError for a record whose checksum differs or is missing.
    """
    records = []
    for path in sorted(folder.rglob("[!.]*.json")):  # a hidden one is what a killed writer left
        try:
            data = files.read_file(path)
        except Damaged as error:
            raise damaged(path, str(error)) from None
        if b'"slimnb.run/' in data or re.search(r"-[0-9a-f]{16}\.json$", path.name):  # a damaged one has its name left
            body, mark, _ = data.rpartition(SEAL)
            if not mark or data != seal(body):
                raise damaged(path, "its checksum differs" if mark else "it has no checksum")
            if mention.encode() in data:
                record = from_json(data, label(path))
                del record["sha256"]
                records.append(check_record(record, path))
        elif mention.encode() in data:
            from_json(data, label(path))
    return records


def check_record(record: Any, path: Path) -> dict[str, Any]:
    """Return the record if its schema is ours and its ids are the hashes of its content, else raise StoreError."""
    refuse_schema(record, path)
    try:
        ids = run_ids(record["recipe"], record["code"], record["data"])
        whole = ids == (record["run_id"], record["recipe_id"]) and {"machine", "result"} <= record.keys()
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise damaged(path, "its id is not the hash of its recipe, code and data")
    return record


def refuse_schema(header: Any, path: Path) -> None:
    """Raise StoreError for a file that another version of the store wrote."""
    schema = str(header.get("schema"))[:30] if isinstance(header, dict) else "none"
    if schema != SCHEMA:
        why = f"schema {schema!r}, this slimnb reads {SCHEMA!r}"
        fix = "Use the slimnb that wrote it, or move it away."
        raise StoreError(label(path), why, fix, "Kept as it is.")


def refuse_foreign(header: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """Raise StoreError for a file of another schema or another run, with what differs."""
    refuse_schema(header, path)
    if header.get("run_id") != identity["run_id"]:
        why = f"belongs to another run: {changes(_flat(header), _flat(identity))}"[:110]
        raise StoreError(label(path), why, "Move it away.", "All is kept.")


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    recipe = identity.get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {"recipe": recipe}
    return recipe | {key: identity.get(key) for key in ("code", "data")}


def damaged(path: Path, reason: str) -> SlimnbError:
    """Make the StoreError for a result that cannot be believed."""
    fix = "Restore it (git checkout), or move it away to train again."
    return StoreError(label(path), f"damaged: {reason}", fix, "Kept as it is.")


def payload(record: dict[str, Any]) -> dict[str, Any]:
    """Return what `finish` stored, with the run's id and, if it resumed with drift, what had changed."""
    return record["result"] | {key: record[key] for key in ("run_id", "resumed_with_drift") if key in record}


def thin(events: list[dict[str, Any]], points: int) -> list[dict[str, Any]]:
    """Return at most `points` (>= 2) of the events, evenly spaced, with the first and the last."""
    if len(events) <= points:
        return events
    last = len(events) - 1
    return [events[round(i * last / (points - 1))] for i in range(points)]


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the keys that differ, as "lr 0.1→0.2, ..."."""
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return ", ".join(f"{k} {str(old.get(k))[:20]}→{str(new.get(k))[:20]}" for k in keys)


def results_frame(results: Iterable[Any]) -> pandas.DataFrame:
    """Make a table with one row per run and subnet: `run_id`, the recipe's plain fields, the row's own values.

    `results` are records of a store, or objects with `recipe`, `rows` and `run_id`. If a row and the recipe disagree
    about a name, the recipe's value is column `recipe_<name>`.
    """
    import pandas

    lines = []
    for item in results:
        recipe, rows, extra = _parts(item)
        fields = {k: v for k, v in recipe.items() if v is None or isinstance(v, (str, int, float))}
        for row in rows:
            named = {f"recipe_{k}" if row.get(k, v) != v else k: v for k, v in fields.items()}
            lines.append(extra | named | row)
    return pandas.DataFrame(lines, columns=None if lines else ["run_id"])


def _parts(item: Any) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    if isinstance(item, dict):
        extra = {k: item[k] for k in ("run_id", "stale_code", "resumed_with_drift") if k in item}
        return item["recipe"], item["result"].get("rows", []), extra
    recipe = item.recipe
    if dataclasses.is_dataclass(recipe):
        recipe = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    return dict(recipe), item.rows, {"run_id": item.run_id}
