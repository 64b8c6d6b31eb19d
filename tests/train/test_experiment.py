"""From a recipe to a result: trained once, loaded ever after, measured as promised."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

from slimnb import plugins
from slimnb.cost.macs import count_macs
from slimnb.data.datasets import Augmentation, load_data
from slimnb.errors import SlimnbError
from slimnb.papers.deps import recipes as deps
from slimnb.papers.pss_net import recipes as pss_net
from slimnb.papers.slimmable import diagnostics, recipes
from slimnb.papers.slimmable import recipes as slimmable_networks
from slimnb.papers.sp_net import recipes as sp_net
from slimnb.papers.sp_net.pruning import gammas
from slimnb.runs.definitions import reached
from slimnb.runs.store import RunStore
from slimnb.subnet import Subnet
from slimnb.train import experiment
from slimnb.train import recipe as recipe_module
from slimnb.train.calibrate import evaluate
from slimnb.train.experiment import Context
from slimnb.train.measure import measure
from slimnb.train.optim import Schedule
from slimnb.train.recipe import SCALES
from slimnb.train.state import net_state

TINY = replace(recipes.SMOKE, arm="S-Net", epochs=1, mults=(0.5, 1.0), layout=((32, 2), (32, 2), (64, 1)),
               calibration_images=64)
US_NET = replace(TINY, arm="US-Net", method="sandwich", bn="calibrated", mults=(0.5, 0.75, 1.0),
                 train_mults=(0.5, 0.75, 1.0))


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", train=400, test=90)


@pytest.fixture(scope="module")
def us_net(data, store):
    return experiment.run(US_NET, data, store, quiet=True)  # whichever test asks first trains it


def test_a_training_opens_the_test_images_once_at_its_end(data, store):
    opened = data.test_opened
    experiment.run(replace(TINY, seed=11), data, store, quiet=True)
    assert data.test_opened == opened + 1
    experiment.run(replace(TINY, seed=11), data, store, quiet=True)  # loaded
    assert data.test_opened == opened + 1


def test_rows_hold_one_line_per_width(us_net):
    assert [row["mult"] for row in us_net.rows] == [0.5, 0.75, 1.0]
    for row in us_net.rows:
        assert {"macs", "params", "top1", "top1_val", "ce", "top1_easy", "top1_medium", "top1_hard"} <= row.keys()
        assert row["n"] == 90 and 0 <= row["top1"] <= 100
        thirds = (row["top1_easy"] + row["top1_medium"] + row["top1_hard"]) / 3
        assert row["top1"] == pytest.approx(thirds, abs=1e-6)  # 90 images make equal thirds
    assert us_net.rows[0]["macs"] < us_net.rows[1]["macs"] < us_net.rows[2]["macs"]


@pytest.fixture(scope="module")
def looks(us_net, data, store):
    opened = data.test_opened
    found = diagnostics.diagnose(us_net, data, (0.5, 1.0), store)
    assert data.test_opened == opened  # probes use validation images
    return found


def test_probes_look_at_the_widths_asked_for(looks):
    pairs = {(row["mult"], row["statistics_mult"]) for row in looks["borrowed"]}
    assert pairs == {(a, b) for a in (0.5, 1.0) for b in (0.5, 1.0)}
    assert {row["images"] for row in looks["calibration"]} == {8, 16, 32, 64, 128, 256}  # of 360 train images
    assert {row["mult"] for row in looks["statistics"]} == {0.5, 1.0}


def test_own_statistics_in_the_borrowed_table_give_the_validation_accuracy(us_net, looks):
    own = {row["mult"]: row["top1"] for row in looks["borrowed"] if row["mult"] == row["statistics_mult"]}
    validated = {row["mult"]: row["top1_val"] for row in us_net.rows}
    assert own == {mult: validated[mult] for mult in own}


def test_a_finished_run_is_loaded_not_trained(us_net, data, store, monkeypatch):
    monkeypatch.setattr(experiment, "_train", lambda *args: pytest.fail("trained again"))
    assert experiment.run(US_NET, data, store).rows == us_net.rows


def test_a_trained_net_has_the_statistics_its_candidates_were_measured_with(data, store):
    recipe = replace(pss_net.FAMILIES["smoke"][0].base, arm="PSS-F", epochs=1, batch_size=32, layout=TINY.layout,
                     buckets=(("MACs", 1e5, 3e5, 5e4),), samples=2000, pool_size=2)
    result = experiment.run(recipe, data, store, quiet=True)
    assert [row["name"] for row in result.rows][:2] == ["max", "min"] and len(result.rows) > 3
    net = experiment.trained(result, data.num_classes, store)
    tested = [row for row in result.findings["candidates"] if "top1" in row]
    images = experiment.plain_batches(data, data.test, 32, "cpu")
    again = evaluate(net, [Subnet.from_json(row["subnet"]) for row in tested], images)
    assert [(found.top1, found.ce) for found in again] == [(row["top1"], row["ce"]) for row in tested]


def test_every_policy_and_method_trains(data, store):
    arms = [TINY, replace(TINY, arm="One BN", bn="one"), replace(TINY, arm="GN", bn="group", mults=(1.0,)),
            replace(TINY, arm="Shared", bn="shared_affine"),
            replace(US_NET, arm="Uniform", method="uniform", dtype="bfloat16")]
    for recipe in arms:
        found = experiment.run(recipe, data, store, quiet=True)
        assert len(found.rows) == len(recipe.mults)
        assert all(torch.isfinite(torch.tensor(row["ce"])) for row in found.rows)


def test_training_can_be_forbidden(data, store, monkeypatch):
    monkeypatch.setenv(experiment.NO_TRAINING, "1")
    refused("StoreError", experiment.run, replace(TINY, seed=7), data, store)


def test_a_committed_result_serves_without_the_run(us_net, looks, data, store, tmp_path, capsys):
    paths = experiment.commit([US_NET], data, store, tmp_path / "results")
    assert len(paths) == 2 and all(path.stat().st_size < 100_000 for path in paths)  # run and probes, no weights
    elsewhere = RunStore(tmp_path / "runs", tmp_path / "results")
    again = experiment.run(US_NET, data, elsewhere)
    assert again.rows == us_net.rows
    assert diagnostics.diagnose(again, data, (0.5, 1.0), elsewhere)["borrowed"] == looks["borrowed"]
    assert "earlier version" not in capsys.readouterr().out


def test_a_result_of_older_code_says_so(us_net, data, store, tmp_path, monkeypatch, capsys):
    experiment.commit([US_NET], data, store, tmp_path / "results")
    monkeypatch.setattr(experiment, "code_of", lambda recipe: "0" * 64)
    found = experiment.run(US_NET, data, RunStore(tmp_path / "runs", tmp_path / "results"))
    assert found.stale_code and ": trained by an earlier version of the code" in capsys.readouterr().out
    monkeypatch.setattr(experiment, "measuring_code_of", lambda recipe: "1" * 64)
    found = experiment.run(US_NET, data, RunStore(tmp_path / "runs", tmp_path / "results"))
    assert found.stale_measure and ": trained and measured by an earlier version" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"net": "alexnet"}, {"method": "wish"}, {"bn": "batch"}])
def test_unknown_names_are_refused(data, store, wrong):
    refused("ParameterError", experiment.run, replace(TINY, **wrong), data, store)


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_only_in_what_they_are_about(scale, data):
    arms = slimmable_networks.arms(Context(scale, 3, data))
    assert [r.arm for r in arms] == ["Individual"] * 4 + ["One BN", "S-Net", "US-Net"]
    same = {(r.seed, r.epochs, r.batch_size, r.lr, r.weight_decay, r.augment, r.layout, r.scale) for r in arms}
    assert len(same) == 1
    assert {r.largest for r in arms[4:]} == {1.0} and [r.largest for r in arms[:4]] == list(recipes.WIDTHS)


def test_unknown_scale_is_refused(data):
    refused("ParameterError", slimmable_networks.arms, Context("huge", 0, data))


def test_a_study_runs_its_stages_in_order_and_only_the_arms_asked_for(data, store):
    seen = []

    def second(context):
        seen.append([(each.recipe.arm, each.run_id) for each in context.results])
        return [replace(TINY, arm="After", seed=context.seed) for _ in context.results]

    stages = (lambda context: [replace(each, seed=context.seed) for each in (TINY, US_NET)], second)
    both = experiment.study(stages, "smoke", [0, 1], data, store, quiet=True)
    assert [r.recipe.arm for r in both] == ["S-Net", "US-Net", "After", "After"] * 2
    assert [r.recipe.seed for r in both] == [0] * 4 + [1] * 4
    assert seen[0] == [(r.recipe.arm, r.run_id) for r in both[:2]]
    one = experiment.study(stages, "smoke", [0], data, store, arms=["US-Net"], quiet=True)
    assert [r.run_id for r in one] == [both[1].run_id]
    after = experiment.study(stages, "smoke", [0], data, store, arms=["After"], quiet=True)
    assert [r.run_id for r in after] == [r.run_id for r in both[2:4]]  # the stage before it is finished, so it serves
    with pytest.raises(SlimnbError, match="it is one of After, S-Net, US-Net"):
        experiment.study(stages, "smoke", [0], data, store, arms=["U-Net"], quiet=True)


def test_named_subnets_are_trained_and_evaluated_by_name(data, store):
    """Subnets that are not nested: the supernet is as wide as the widest of them, unit by unit."""
    recipe = replace(TINY, arm="Named", mults=(), subnets=(("thin", (8, 24, 8)), ("deep", (16, 8, 32))))
    net = recipe.build(data.num_classes)
    assert net.largest.widths == (16, 24, 32)
    found = experiment.run(recipe, data, store, quiet=True)
    assert [row["name"] for row in found.rows] == ["thin", "deep"]
    assert found.rows[0]["macs"] == count_macs(net, Subnet((8, 24, 8)))


def test_a_field_that_is_none_names_no_run():
    assert "subnets" not in TINY.to_json() and TINY.to_json()["arm"] == "S-Net"


def test_a_recipe_says_how_its_images_are_augmented(data):
    plain = replace(TINY, augment="crop_flip").batches(data, "cpu")
    assert plain.augment == Augmentation("crop_flip")
    full = replace(TINY, augment="resized_crop", reflect=True, auto_augment=True, jitter=(0.4, 0.4, 0.4, 0.1),
                   lighting=0.1, erasing=0.2, smoothing=0.1)
    assert full.batches(data, "cpu").augment == Augmentation(
        "resized_crop", reflect=True, auto_augment=True, jitter=(0.4, 0.4, 0.4, 0.1), lighting=0.1, erasing=0.2)
    for method in ("switches", "sandwich", "uniform"):
        made = replace(full, method=method, train_mults=(0.5, 1.0))
        _, objective = made.sampler_and_objective(made.build(10), 1)
        assert objective.smoothing == 0.1
        _, objective = replace(made, smoothing=None).sampler_and_objective(made.build(10), 1)
        assert not objective.smoothing


def test_schedules_count_in_epochs():
    falling = Schedule.of(replace(TINY, schedule="exponential", gamma=0.5, epochs=3, lr=1.0), 10)
    assert [falling(step) for step in (0, 9, 10, 29)] == [1, 1, 0.5, 0.25] and falling.steps == 30
    stairs = Schedule.of(replace(TINY, schedule="multistep", gamma=0.2, milestones=(1, 2), lr=1.0), 10)
    assert [round(stairs(step), 6) for step in (9, 10, 20)] == [1, 0.2, 0.04]


@pytest.mark.parametrize("name", ["slimmable_networks", *list(plugins.OURS["papers"])[1:]])
def test_every_study_belongs_to_a_chapter(name):
    (chapter,) = Path("notebooks").glob(f"[0-9][0-9]_{name}.py")
    assert experiment.paper_of(chapter.stem).STAGES


def test_a_chapter_that_trains_nothing_says_so():
    refused("ParameterError", experiment.paper_of, "00_notation")


def test_a_measurement_is_taken_once(store):
    taken = []

    def take():
        taken.append(1)
        return {"ms": 1.0}

    first, second = (experiment.once(store, {"paper": "x", "arm": "clock"}, "code", take) for _ in range(2))
    assert first == second and first["ms"] == 1.0 and taken == [1]


# -- what starts from another run ------------------------------------------------------------------------

TWO = sp_net._RESNET
FAMILIES = tuple(
    sp_net.Family(name, replace(sp_net._SMOKE, epochs=1, batch_size=90, calibration_images=64, dtype="float32", **net),
                  0.02, TWO, 1.0, joint, arms)
    for name, net, joint, arms in (
        ("MobileNetV1", {"layout": TINY.layout}, sp_net.ANEW, ()),
        ("ResNet-50", {"net": "resnet", "stem": 4, "layout": ((2, 1), (4, 2))}, sp_net.TUNE, sp_net.ARMS[1:])))


@pytest.fixture(scope="module")
def pruned(data, store):
    """Results of all stages of chapter 02, in very small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sp_net.LAPTOP, "smoke", FAMILIES)
        return experiment.study(sp_net.STAGES, "smoke", [0], data, store, quiet=True)


def named(results, arm, net="resnet", **fields):
    (found,) = (r for r in results if r.recipe.arm == arm and r.recipe.net == net
                and all(getattr(r.recipe, name) == value for name, value in fields.items()))
    return found


def test_every_arm_of_chapter_02_is_trained_and_measured(pruned, data):
    arms = [(r.recipe.net, r.recipe.arm) for r in pruned]
    assert set(arms) == {("mobilenet_v1", arm) for arm in ("Individual", "S-Net", "Base", "SP-Net")} | {
        ("resnet", arm) for arm in ("Individual", "S-Net", "Base", "SP-Net", "Slimming alone", *sp_net.ARMS[1:])}
    uniform = {row["mult"]: row["macs"] for row in named(pruned, "S-Net").rows}
    for result in (r for r in pruned if r.recipe.net == "resnet" and r.recipe.supernet):
        for row, printed in zip(result.rows, result.findings["printed_macs"], strict=True):
            assert 0.6 * uniform[row["mult"]] < printed <= min(uniform[row["mult"]], row["macs"])
            assert 0 <= row["top1"] <= 100


def test_a_tuned_net_starts_from_its_base_whose_outputs_sorting_keeps(pruned, data, store):
    tuned, base = named(pruned, "SP-Net"), named(pruned, "Base", mults=(1.0,))
    assert tuned.recipe.start == base.run_id
    was, now = experiment.trained(base, 10, store), tuned.recipe.begin(10, store).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(now(x), was(x), rtol=1e-4, atol=1e-5)
    assert now.padding == "match"
    for unit, before in zip(gammas(now), gammas(was), strict=True):
        assert (unit[0][:-1] >= unit[0][1:]).all() and sorted(unit[0]) == sorted(before[0]), "most important first"


def test_a_net_drawn_anew_has_its_own_weights(pruned, store):
    anew, chain = (named(pruned, *arm) for arm in (("Drawn anew", "resnet"), ("SP-Net", "mobilenet_v1")))
    begun, fresh = anew.recipe.begin(10, store), anew.recipe.build(10)
    assert begun.padding == "ends" and torch.equal(begun.classifier.weight, fresh.classifier.weight)
    assert chain.recipe.start is None
    for net in (begun, chain.recipe.begin(10, store)):
        assert all((norm.weight == 0.5).all() for norm in net.norms())


def test_a_trained_net_comes_back_with_its_joins(pruned, data, store):
    for arm in ("SP-Net", "Shortcut first", "Drawn anew", "Iterative", "Slimming alone"):
        result = named(pruned, arm)
        net = experiment.trained(result, 10, store)
        rows = measure(net, data, list(result.recipe.named(net).values()), images=64)
        assert [(row["top1"], row["macs"]) for row in rows] == [(row["top1"], row["macs"]) for row in result.rows]


def test_the_second_step_of_iterative_pruning_lies_within_the_first(pruned):
    (_, first), (_, second) = named(pruned, "Iterative").recipe.subnets[1:]
    assert (0.75, first) in named(pruned, "Slimming alone").recipe.subnets
    assert all(thin <= wide for thin, wide in zip(second, first, strict=True))


def test_an_interrupted_tuning_ends_in_the_same_bits(pruned, data, store, tmp_path, monkeypatch):
    """Stopped after two steps of four and again after one more: begun from the base, then from a checkpoint."""
    result = named(pruned, "SP-Net")
    recipe = replace(result.recipe, arm="Interrupted")
    straight = experiment.run(recipe, data, store, quiet=True)
    elsewhere = RunStore(tmp_path / "runs", tmp_path / "results")
    elsewhere.root.mkdir()
    (elsewhere.root / recipe.start).symlink_to(store.root.resolve() / recipe.start)
    through = experiment.train
    for steps in (2, 1):
        asked = []
        monkeypatch.setattr(experiment, "train", lambda *args, asked=asked, steps=steps, **options: through(
            *args, **options | {"stop": lambda: asked.append(1) or len(asked) == steps}))
        refused("BusyError", experiment.run, recipe, data, elsewhere, quiet=True)
    monkeypatch.setattr(experiment, "train", through)
    again = experiment.run(recipe, data, elsewhere, quiet=True)
    assert again.rows == straight.rows and again.history == straight.history
    one, other = (net_state(experiment.trained(r, 10, s))[0] for r, s in ((straight, store), (again, elsewhere)))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_committed_results_serve_chapter_02_without_weights(pruned, data, store, tmp_path, monkeypatch):
    monkeypatch.setitem(sp_net.LAPTOP, "smoke", FAMILIES)
    base = named(pruned, "Base", mults=(1.0,))
    looked = sp_net.scores(base, data, store)  # taken when it was pruned
    experiment.commit([r.recipe for r in pruned], data, store, tmp_path / "results")
    elsewhere = RunStore(tmp_path / "runs", tmp_path / "results")
    monkeypatch.setenv(experiment.NO_TRAINING, "1")
    again = experiment.study(sp_net.STAGES, "smoke", [0], data, elsewhere)
    assert [(r.run_id, r.rows, r.recipe) for r in again] == [(r.run_id, r.rows, r.recipe) for r in pruned]
    assert sp_net.scores(base, data, elsewhere) == looked and len(looked["gammas"]) == 12
    with pytest.raises(SlimnbError, match="StoreError: weights of run"):
        experiment.trained(base, 10, elsewhere)


def test_pruning_counts_as_code_of_its_paper_alone(pruned):
    plain, joint = (reached(experiment.methods_of(recipe, recipe.TRAINING))
                    for recipe in (US_NET, named(pruned, "SP-Net").recipe))
    pruning = "slimnb.papers.sp_net.pruning:embed_counts_"
    assert pruning not in plain and pruning in joint


def test_all_runs_of_a_paper_are_committed_whatever_their_data(us_net, looks, data, store, tmp_path):
    paths = experiment.commit_all("slimmable", US_NET.scale, store, tmp_path / "all")
    ids = {record["run_id"] for record in store.records() if record["recipe"]["paper"] == "slimmable"}
    assert {path.stem for path in paths} == ids and us_net.run_id in ids
    assert experiment.commit_all("slimmable", "full", store, tmp_path / "all") == []
    assert experiment.commit_all("deps", US_NET.scale, store, tmp_path / "all") == []


@pytest.mark.parametrize(("capability", "made"), [("AVX2", torch.float32), ("AVX512", torch.bfloat16)])
def test_bfloat16_is_left_to_processors_that_have_it(monkeypatch, capability, made):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert recipe_module.training_dtype("bfloat16", "cpu") == made
    assert recipe_module.training_dtype("bfloat16", "cuda") == torch.bfloat16
    assert recipe_module.training_dtype("float32", "cpu") == torch.float32


def test_zero_is_a_choice_of_a_nets_option_and_not_the_nets_own():
    recipe = deps.LAPTOP["smoke"][0].full
    assert recipe.build(10).mix is not None and replace(recipe, head=0).build(10).mix is None
    assert replace(recipe, head=0).to_json()["head"] == 0


@pytest.mark.parametrize("paper", plugins.OURS["papers"])
def test_everything_at_full_trains_in_bfloat16(paper):
    for size, classes in ((32, 100), (224, 1000)):
        context = Context("full", 0, SimpleNamespace(size=size, num_classes=classes), (), None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pss_net, "latency_arms", lambda *given: [])  # they would be measured
            recipes_at_full = plugins.find("papers", paper).STAGES[0](context)
        assert {recipe.dtype for recipe in recipes_at_full} == {"bfloat16"}
