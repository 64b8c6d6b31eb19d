"""A paper, a net and a resource of another package, found by their entry points: examples/seventh_paper."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from figure_checks import holds_for
from refusals import refused
from seventh_paper import figures, recipes
from seventh_paper.net import TinyNet
from seventh_paper.resource import weights

from slimnb import count_params, load_data, plugins
from slimnb.__main__ import main
from slimnb.book.claims import judge, paired
from slimnb.book.registered import claims_of
from slimnb.nets.vgg import VGG
from slimnb.papers.pss_net import recipes as pss_net
from slimnb.papers.pss_net.structures import StructureCosts, structure_space
from slimnb.runs import fingerprint
from slimnb.runs.results import results_frame
from slimnb.runs.store import RunStore
from slimnb.train import experiment
from slimnb.train.calibrate import calibrate_bn
from slimnb.train.experiment import Context, paper_of, study

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"slimnb": ROOT / "slimnb", "seventh_paper": ROOT / "examples/seventh_paper/seventh_paper"}


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", train=400, test=90)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return RunStore(folder / "runs", folder / "results")


@pytest.fixture(scope="module")
def results(data, store):
    return study(paper_of("seventh").STAGES, "smoke", [0], data, store, quiet=True)


# -- found by name ---------------------------------------------------------------------------------------


def test_all_three_are_found_by_name():
    assert paper_of("seventh") is recipes and not hasattr(recipes, "CHAPTER")
    assert plugins.find("nets", "tiny_net") is TinyNet and plugins.find("resources", "weights") is weights


@pytest.mark.parametrize("kind", ["papers", "nets", "resources"])
def test_an_unknown_name_says_what_there_is_and_how_to_add_to_it(kind):
    line = refused("ParameterError", plugins.find, kind, "x" * 99)
    assert plugins.names(kind)[-1] in line and f"install its package (entry points slimnb.{kind})" in line


# -- a run -----------------------------------------------------------------------------------------------


def test_its_runs_are_trained_once_and_found_again(results, data, store, monkeypatch):
    assert [result.recipe.arm for result in results] == [recipes.CONTROL, recipes.OURS]
    assert all([row["mult"] for row in result.rows] == [0.25, 0.5, 0.75, 1.0] for result in results)
    monkeypatch.setenv(experiment.NO_TRAINING, "1")
    again = study(recipes.STAGES, "smoke", [0], data, store, quiet=True)
    assert [result.run_id for result in again] == [result.run_id for result in results]


@pytest.fixture
def digest(monkeypatch, tmp_path):
    """Gives the code fingerprint of a recipe after a text of a file was replaced, in a copy of both packages."""
    copies = {name: tmp_path / name for name in FOLDERS}
    for name, folder in FOLDERS.items():
        shutil.copytree(folder, copies[name], ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(experiment, "code_fingerprint", lambda roots: fingerprint.code_fingerprint(roots, copies))

    def of(recipe, path="", old="", new=""):
        before = (tmp_path / path).read_text() if path else ""
        assert old in before
        if path:
            (tmp_path / path).write_text(before.replace(old, new))
        try:
            return experiment.code_of(recipe)
        finally:
            if path:
                (tmp_path / path).write_text(before)

    return of


def test_a_run_is_stale_when_its_own_code_changes_and_not_when_another_papers_does(digest):
    recipe = recipes.arms(Context("smoke", 0, None))[1]
    known = digest(recipe)
    assert digest(recipe, "seventh_paper/method.py", "macs / macs.sum()", "macs**2 / (macs**2).sum()") != known
    assert digest(recipe, "seventh_paper/net.py", '"relu"', '"swish"') != known
    assert digest(recipe, "slimnb/papers/slimmable/method.py", "logits.detach()", "logits") != known  # it builds on it
    assert digest(recipe, "seventh_paper/figures.py", "TOP1)", '"%")') == known
    for path in sorted(FOLDERS["slimnb"].glob("papers/*/*.py")):
        if path.parent.name != "slimmable" and " return " in path.read_text():
            place = f"slimnb/papers/{path.parent.name}/{path.name}"
            assert digest(recipe, place, " return ", " return None or ") == known, place


def test_a_recipe_with_its_resource_is_stale_when_the_resource_changes(digest):
    recipe = replace(pss_net._SMOKE, arm="x", buckets=(("weights", 5, 30, 5),))
    assert digest(recipe) != digest(recipe, "seventh_paper/resource.py", "4e-3", "2e-3")


def test_the_command_line_trains_a_paper_without_a_chapter(results, data, store, monkeypatch, capsys, tmp_path):
    shutil.copytree(store.root, tmp_path / "data/runs")
    monkeypatch.setattr("slimnb.book.chapter.find_root", lambda start=".": tmp_path)
    monkeypatch.setattr("slimnb.data.datasets.load_data", lambda *_, **__: data)
    monkeypatch.setenv(experiment.NO_TRAINING, "1")
    main(["train", "seventh", "--scale", "smoke", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "scale smoke | seed 0" in shown and "Half-sandwich (seed 0): 0.25x" in shown


def test_a_scale_that_it_lacks_is_refused(data):
    refused("ParameterError", recipes.arms, Context("full", 0, data), words="it is one of smoke, small")


# -- its parts -------------------------------------------------------------------------------------------


def test_wide_subnets_are_drawn_as_often_as_they_are_dear():
    net = TinyNet()
    sampler, _ = recipes.arms(Context("smoke", 0, None))[1].sampler_and_objective(net, 1)
    drawn = [sampler.plan(step)[2].route for step in range(4000)]
    seen = np.array([drawn.count(subnet) for subnet in sampler.widths]) / len(drawn)
    assert np.abs(seen - sampler.odds).max() < 0.03 and (np.diff(sampler.odds) > 0).all()


@pytest.mark.parametrize("mult", [0.25, 0.5, 1.0])
def test_a_recipe_builds_the_net_and_a_slice_of_it_is_what_extraction_gives(mult):
    net = recipes.SCALES["smoke"].build(10)
    assert isinstance(net, TinyNet)
    subnet, x = net.uniform(mult), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calibrate_bn(net, [subnet], [x])
    torch.testing.assert_close(net.eval()(x, subnet), net.extract(subnet)(x))
    assert sum(p.numel() for p in net.extract(subnet).parameters()) == count_params(net, [subnet])


@pytest.mark.parametrize("net", [TinyNet(), VGG(10, 32, layout=((8, 8), (16,), (32, 32)))], ids=["tiny_net", "vgg"])
def test_the_resource_is_four_bytes_per_parameter(net):
    structures = structure_space(net, 0.25)
    index = structures.draw(np.random.default_rng(0), 20)
    costs = StructureCosts.of(structures, weights(net, structures)).cost(index)
    exact = [0.004 * count_params(net, [subnet]) for subnet in structures.subnets(index)]
    np.testing.assert_allclose(costs, exact, rtol=1e-12)


def test_pss_net_holds_its_structures_to_the_resource():
    recipe = replace(pss_net._SMOKE, arm="PSS-W", net="tiny_net", layout=None, train_mults=(0.5, 1.0),
                     buckets=(("weights", 20, 100, 20),))
    net = recipe.build(10)
    targets, rng = recipe.targets(net), np.random.default_rng(0)
    assert [target.name for target in targets] == ["40 kB weights", "60 kB weights", "80 kB weights"]
    for target in targets:
        for subnet in target.sample(rng, 5):
            assert abs(0.004 * count_params(net, [subnet]) - target.cost) <= 10
    plan = recipe.sampler_and_objective(net, 10)[0].plan(0)
    assert plan[0].route == net.largest


# -- claim and figure ------------------------------------------------------------------------------------


def frame(gain=2.0, seeds=5):
    rng = np.random.default_rng(0)
    rows = itertools.product((recipes.CONTROL, recipes.OURS), range(seeds), (0.25, 0.5, 0.75, 1.0))
    made = pd.DataFrame(rows, columns=["arm", "seed", "mult"])
    return made.assign(top1=40 + 20 * made["mult"] + gain * (made["arm"] == recipes.OURS) + rng.random(len(made)))


def verdict(rows, scale):
    claim = claims_of("seventh")["seventh-wide-subnets-gain"]
    return judge(claim, *paired(rows, claim), scale=scale)


@pytest.mark.parametrize(("gain", "seeds", "word"), [(3, 5, "holds"), (-3, 5, "contradicted"), (3, 1, "estimate only")])
def test_the_claim_is_judged(gain, seeds, word):
    assert verdict(frame(gain, seeds), "small").verdict == word


def test_the_claim_is_judged_on_what_was_trained(results):
    found = verdict(results_frame(results), "smoke")
    assert (found.n, found.verdict) == (1, "estimate only")


test_the_figure_holds = holds_for({"accuracy": lambda: figures.accuracy(frame(), "Draws by cost or uniform draws")})


def test_a_line_is_the_mean_of_the_seeds():
    ax = figures.accuracy(frame(), "t")
    means = frame().groupby(["arm", "mult"])["top1"].mean()
    line = next(line for line in ax.lines if line.get_marker() == "None" and line.get_color() == "#CC79A7")
    assert line.get_ydata() == pytest.approx(means[recipes.OURS].to_numpy())
