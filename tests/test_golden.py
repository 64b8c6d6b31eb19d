"""Tiny runs of every chapter find what tests/golden.json says: to the last bit where it was made, else nearly."""

import pytest
import torch
from golden_runs import CHAPTERS, DETECTION, FEW, OTHERS, load, machine, recipe_ids, traces

from slimnb.train.recipe import training_dtype

GOLDEN = load()
EXACT = machine() == GOLDEN["machine"]

# Largest relative differences of losses where bits may differ. In float32 runs without AVX-512 differ by .0007 at most
# and those of `WILD` by .006; with momentum .89 in place of .9 most differ by more. In bfloat16 without oneDNN: .03.
NEAR = {"float32": 1e-3, "bfloat16": 5e-2}
WILD = {"detection": 1e-2, "other nets": 1e-2}
CHOSEN = 0.1  # the same of what hangs on choices that may flip: MACs of what was pruned, sums of what was found
FLIPS = 100 * 3.5 / 40  # percent of the 40 test images: three of them


def near(name: str, old: float, new: float, most: float) -> bool:
    """Whether another processor explains how much a number differs, of losses by `most`."""
    if " map" in name:
        return True  # of ten scenes it may be anything
    if name.endswith(" top1"):
        return abs(old - new) <= FLIPS
    return abs(old - new) <= (most if name.startswith("step") or name.endswith(" ce") else CHOSEN) * abs(old)


def differences(old: dict, new: dict, most: float, exact: bool) -> list[str]:
    """What differs in the traces of a chapter: arm, step or other number, old and new; of an arm the first only."""
    lines = []
    for arm in sorted(old.keys() | new.keys()):
        before, after = old.get(arm, {}), new.get(arm, {})
        # Losses come first, in their order: what is measured later follows from them.
        for name in sorted(before.keys() | after.keys(), key=lambda name: (not name.startswith("step"), name)):
            was, now = before.get(name, "nothing"), after.get(name, "nothing")
            if was != now and (exact or not _near_hex(name, was, now, most)):
                lines.append(f"{arm}: {name}: {_shown(was)} in the file, now {_shown(now)}")
                break
    return lines


def _near_hex(name: str, was: str, now: str, most: float) -> bool:
    if name == "dtype" or "nothing" in (was, now):
        return False
    return near(name, float.fromhex(was), float.fromhex(now), most)


def _shown(text: str) -> str:
    return f"{float.fromhex(text)!r} ({text})" if "0x" in text else text


CASES = [(chapter, dtype, arms) for chapter, arms in FEW.items() for dtype in ("float32", "bfloat16")]
CASES += [(DETECTION, "float32", None), (DETECTION, "bfloat16", None)]
CASES += [pytest.param(chapter, dtype, None, marks=pytest.mark.sweep)
          for chapter in (*FEW, OTHERS) for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize(("chapter", "dtype", "arms"), CASES)
def test_tiny_runs_find_what_they_found(chapter, dtype, arms):
    if training_dtype(dtype, "cpu") != getattr(torch, dtype):
        pytest.skip("this processor trains in float32 what is asked for in bfloat16")
    most = max(NEAR[dtype], WILD.get(chapter, 0))
    golden = {name: trace for name, trace in GOLDEN["traces"][chapter][dtype].items()
              if arms is None or name.startswith(tuple(f"{arm}, " for arm in arms))}
    found = differences(golden, traces(chapter, dtype, arms), most, EXACT)
    how = "to the last bit" if EXACT else f"within {most:g}, for the file is of {GOLDEN['machine']}"
    assert golden and not found, f"{chapter}, {dtype}, compared {how}:\n" + "\n".join(found)


@pytest.mark.parametrize("chapter", [*CHAPTERS, DETECTION])
def test_recipes_keep_their_ids(chapter):
    assert recipe_ids(chapter) == GOLDEN["recipes"][chapter]


def test_what_is_compared_is_said_in_words():
    old = {"A": {"dtype": "float32", "step 01 max": (2.0).hex(), "row 1.0 top1": (10.0).hex()}, "B": {}}
    new = {"A": {"dtype": "float32", "step 01 max": (2.001).hex(), "row 1.0 top1": (15.0).hex()}, "B": {}}
    exact = differences(old, new, 1e-2, True)
    assert exact == [f"A: step 01 max: 2.0 (0x1.0000000000000p+1) in the file, now 2.001 ({(2.001).hex()})"]
    assert differences(old, new, 1e-2, False) == [] and len(differences(old, new, 1e-4, False)) == 1
    assert differences(old, {}, 1e-2, False) == differences(old, {"A": {}}, 1e-2, True) != []
