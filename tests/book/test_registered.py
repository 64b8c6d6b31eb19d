"""claims.toml: what is registered, and each mistake as one line."""

import pytest
from refusals import fails

from slimnb.book.registered import read_claims

GOOD = """
chapter = "01_x"
trained = ["A", "B"]
derived = ["best A"]
[one]
statement = "A beats B"
source = "Table 1"
arms = ["A", "B"]
metric = "top1"
margin = 0.5
[two]
statement = "A is as good as its best"
source = "ours"
family = "check"
kind = "equivalence"
arms = ["A", "best A"]
metric = "top1"
where = { net = "vgg" }
margin = 1
"""
PRIMARY = "".join(f"""
[p{k}]
statement = "A beats B"
source = "Table 1"
family = "primary"
arms = ["A", "B"]
metric = "top1"
margin = 0
""" for k in range(3))


def test_claims_are_read_field_by_field():
    one, two = read_claims(GOOD, "x").values()
    assert (one.id, one.chapter, one.arms, one.margin, one.direction) == ("one", "01_x", ("A", "B"), 0.5, "greater")
    assert (one.kind, one.family, one.seeds, one.paper_value) == ("superiority", "secondary", 3, None)
    assert (two.kind, two.family, two.where) == ("equivalence", "check", {"net": "vgg"})
    assert list(read_claims(GOOD + PRIMARY, "x")) == ["one", "two", "p0", "p1", "p2"]
    assert read_claims(GOOD + PRIMARY, "x")["p0"].seeds == 5
    assert read_claims("", "x") == {}


@pytest.mark.parametrize("old, new, words", [
    ('arms = ["A", "B"]', 'arms = ["A", "Bee"]', "one: unknown arm 'Bee' — there are A, B, best A"),
    ("margin = 1", "margin = 0", "two: Claim.margin = 0 — must be above 0"),
    ("[two]", "[one]", "Cannot declare .*one.* twice"),
    ("margin = 1", "margin = 1" + PRIMARY + PRIMARY[:PRIMARY.index("[p1]")].replace("p0", "p9"),
     "4 primary claims in 01_x — there may be 3"),
    ("margin = 1", 'margin = "1"', "two: Claim.margin = '1' — must be a valid number"),
    ("margin = 1", "margin = 1\\nseeds = 1", "two: Claim.seeds = 1 — must be at least 3, or .* never be decided"),
    ("margin = 1", "margin = 1\\ndelta = 1", "two: 'delta' — is no field"),
    ("margin = 1", "margin = 1\\nid = 'x'", "two: 'id' — is no field"),
    ("margin = 1", "", "two: no margin — a claim needs it"),
    ('metric = "top1"\\nwhere', "where", "two: no metric"),
    ('chapter = "01_x"', "", "one: no chapter"),
    ('derived = ["best A"]', "derived = 3", "unknown arm 'best A'"),
    ('chapter = "01_x"', 'chapter = "01_x"\\narm = "A"', "arm = 'A' — must be a table"),
    ('family = "check"', 'family = "main"', "two: Claim.family = 'main' — must be 'primary', 'secondary'"),
    ("[two]", "[T w o]", "must be TOML"),
    ("[two]", '["T w o"]', "T w o: Claim.id = 'T w o' — must be 1 to 80 of a-z")])
def test_a_mistake_is_one_line(old, new, words):
    old, new = old.replace("\\n", "\n"), new.replace("\\n", "\n")
    assert old in GOOD
    with fails("ParameterError", words):
        read_claims(GOOD.replace(old, new), "x")


@pytest.mark.parametrize("text", [
    GOOD.replace('"best A"]\nmetric', f'"{"b" * 300}"]\nmetric'), GOOD.replace("[two]", f'["{"b" * 300}"]'),
    GOOD.replace("[two]", '["two\\nlines"]'), GOOD + "x" * 300, GOOD.replace("margin = 1", f"{'m' * 300} = 1"),
    GOOD.replace("01_x", "x" * 300) + PRIMARY + PRIMARY.replace("[p", "[q")])
def test_a_mistake_with_long_names_is_one_line(text):
    with fails("ParameterError"):
        read_claims(text, "p" * 99)
