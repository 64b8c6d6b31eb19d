"""Two processes on one machine do what one process does with the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import distributed_child as child
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file
from small_images import write_folder
from small_nets import images
from torch.testing import assert_close

from slimnb.errors import SlimnbError
from slimnb.runs.store import RunStore
from slimnb.train import distributed, experiment

HERE = Path(__file__).parents[1]
ROUNDED = {"rtol": 1e-5, "atol": 1e-7}  # nets compute in float64 here, but hand out float32 logits


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """(tensors, facts) of each of two ranks that ran distributed_child.py."""
    folder = tmp_path_factory.mktemp("ranks")
    write_folder(folder / "pets", each=12)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    command = [sys.executable, str(HERE / "distributed_child.py"), str(folder)]
    started = [
        subprocess.Popen(
            command,
            env=env | {"RANK": str(r), "LOCAL_RANK": str(r)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for r in range(2)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert sorted(said) == ["", "pets: 24 train, 24 val images, 2 classes\n"], "ranks are quiet, but who first reads"
    return [
        (load_file(folder / f"rank{r}.safetensors"), json.loads((folder / f"rank{r}.json").read_text()))
        for r in range(2)
    ]


def part(tensors: dict, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("method", child.METHODS)
def test_synchronised_step_is_the_step_of_one_process(ranks, method):
    one = child.step_once(method, slice(None))
    for tensors, _ in ranks:
        found = part(tensors, f"{method}/True/")
        assert found.keys() == one.keys()
        for name, value in one.items():
            assert_close(found[name], value, **ROUNDED, msg=lambda text, name=name: f"{name}: {text}")


def test_private_rows_of_untrained_subnets_have_zero_gradient(ranks):
    for tensors, _ in ranks:
        rows = part(tensors, "switches/True/grad/")["features.0.norm.weight"]
        assert rows[:3].abs().min() > 0 and (rows[3] == 0).all()


@pytest.mark.parametrize("method", child.METHODS)
def test_without_synchronisation_gradients_are_the_mean_of_the_shards(ranks, method):
    shards = [child.step_once(method, slice(r, None, 2)) for r in range(2)]
    joined = child.step_once(method, slice(None))
    differs = False
    for tensors, _ in ranks:
        found = part(tensors, f"{method}/False/grad/")
        for name, value in found.items():
            assert_close(value, (shards[0][f"grad/{name}"] + shards[1][f"grad/{name}"]) / 2, **ROUNDED)
            differs |= not torch.allclose(value, joined[f"grad/{name}"], **ROUNDED)
    assert differs, "the shards are so alike that the test above could not fail"


def test_ranks_end_a_step_with_the_same_bits(ranks):
    (first, _), (second, _) = ranks
    for method in child.METHODS:
        one, two = (part(tensors, f"{method}/True/after/") for tensors in (first, second))
        assert all(torch.equal(one[name], two[name]) for name in one)


TOLERANCES = {"float64": (1e-9, 1e-9), "float32": (1e-4, 1e-4), "bfloat16": (2e-2, 2e-2)}


@pytest.mark.parametrize("dtype", child.DTYPES)
def test_batch_norm_layer_is_that_of_the_joined_batch(ranks, dtype):
    one = child.norm_once(child.DTYPES[dtype], slice(None))
    both = [part(tensors, f"norm/{dtype}/") for tensors, _ in ranks]
    rtol, atol = TOLERANCES[dtype]
    for r, found in enumerate(both):
        assert found["out"].dtype == child.DTYPES[dtype]
        for name in ("out", "x"):
            assert_close(found[name], one[name][r::2], rtol=rtol, atol=atol)
        for name in ("mean", "var"):  # statistics are single precision at least, whatever the activations
            assert_close(found[name], one[name], rtol=1e-5, atol=1e-6)
    for name in ("weight", "bias"):
        assert_close(both[0][name] + both[1][name], one[name], rtol=rtol, atol=atol * 50)


def test_calibration_and_evaluation_cover_all_ranks(ranks):
    everything = [pair for r in range(2) for pair in child.shares(r)]
    buffers, facts = child.measured(everything, alone=[images(5, 16)])
    for r, (tensors, found) in enumerate(ranks):
        calibrated = part(tensors, "calibrated/")
        assert calibrated.keys() == buffers.keys()
        for name, value in buffers.items():
            assert_close(calibrated[name], value, rtol=1e-9, atol=1e-12)
        found = found["measured"]
        assert found["seen"] == facts["seen"] == 27 and found["lonely"] == 5
        for mine, theirs in zip(found["eval"], facts["eval"], strict=True):
            assert (mine[0], mine[2]) == (theirs[0], theirs[2]) and mine[1] == pytest.approx(
                theirs[1], rel=1e-6
            )
        first, last = (0, 17) if r == 0 else (17, 27)
        assert found["correct"] == [row[first:last] for row in facts["correct"]]


def test_plans_agree(ranks):
    assert ranks[0][1]["plans"] == ranks[1][1]["plans"] == child.plans()
    assert len(set(ranks[0][1]["plans"])) > 12  # random ones differ from step to step


def test_weights_are_broadcast_and_rows_joined(ranks):
    zero = dict(child.tiny(child.MobileNetV1, seed=0, bn="private").named_parameters())
    for tensors, facts in ranks:
        assert facts["world"] == 2
        found = part(tensors, "broadcast/")
        assert found.keys() == zero.keys() and all(torch.equal(found[name], zero[name]) for name in zero)
        assert facts["joined"] == [i % 3 == 0 for i in range(10)]


def test_a_loss_that_diverged_on_one_rank_stops_both_before_the_update(ranks):
    found = [facts["diverged"] for _, facts in ranks]
    assert found == [{"code": "NumericsError", "same": True}, {"code": "NumericsError", "same": True}]


def test_a_run_of_two_ranks_is_stopped_and_goes_on_in_the_same_bits(ranks):
    for _, facts in ranks:
        straight, first, second, last = facts["runs"]
        assert (first["error"], second["error"]) == ("BusyError", "BusyError")
        assert "step 4 of 8" in first["text"] and "step 6 of 8" in second["text"]
        assert "error" not in last and last["sum"] == straight["sum"]
    assert ranks[0][1]["runs"][-1] == ranks[1][1]["runs"][-1]


def test_a_busy_run_turns_all_ranks_away(ranks):
    assert [facts["busy"]["error"] for _, facts in ranks] == ["BusyError", "BusyError"]


def test_two_ranks_train_from_a_folder_of_images_as_one_does(ranks, tmp_path):
    """Both find the folder not yet decoded; one of them decodes it."""
    write_folder(tmp_path / "pets", each=12)
    alone = child.folder_run(tmp_path, "pets of one")
    both = [facts["folder"] for _, facts in ranks]
    assert both[0] == both[1]
    assert [row["mult"] for row in alone] == [0.5, 1.0] and alone[0]["n"] == 24
    for mine, theirs in zip(alone, both[0], strict=True):
        assert mine["macs"] == theirs["macs"] and mine["ce"] == pytest.approx(theirs["ce"], abs=5e-3)


def test_a_rank_that_has_ended_is_one_line_for_the_other(ranks):
    line = ranks[0][1]["alone"]
    assert line.startswith("slimnb: ResourceError: rank 0 of 2 — another rank has ended") and len(line) <= 240


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("x")])
def test_an_error_that_is_no_lost_rank_stays_what_it_is(error, monkeypatch):
    with pytest.raises(type(error), match=str(error)[:5]), distributed.together(object()):
        raise error
    with pytest.raises(RuntimeError, match="gloo"), distributed.together(None):
        raise RuntimeError("gloo: Connection closed by peer")


def test_ranks_that_change_the_arithmetic_make_a_run_of_their_own(ranks, monkeypatch):
    """What two ranks found is never served as what one would, nor the other way round."""
    folder, both = ranks[0][1]["folder at"], ranks[0][1]["own"]
    assert both == ranks[1][1]["own"] and both[1] == 2
    one = child.own_run(Path(folder))
    assert one.recipe == child.OWN and one.run_id != both[0] and one.rows != both[2]
    monkeypatch.setenv(experiment.RANKS, "2")  # a chapter that wants those of two says so
    two = child.own_run(Path(folder))
    assert [two.run_id, two.recipe.ranks, two.rows] == both
    refused("ParameterError", child.own_run, Path(folder), None, replace(child.OWN, seed=2), words="nproc-per-node 2")
    for wrong in ("0", "two", "-1", "1.5", ""):
        monkeypatch.setenv(experiment.RANKS, wrong)
        refused("ParameterError", child.own_run, Path(folder), words="number of ranks")


@pytest.mark.parametrize(("fields", "ranks"), [({}, 2), ({"bn": "calibrated"}, 2), ({"sync_bn": True}, None),
                                               ({"bn": "group"}, None), ({"sync_bn": True, "dropout": 0.2}, 2)])
def test_one_rank_and_ranks_that_change_nothing_add_nothing_to_a_recipe(fields, ranks):
    recipe = replace(child.OWN, **fields)
    assert recipe.on_ranks(1) == recipe and "ranks" not in recipe.on_ranks(1).to_json()
    assert recipe.on_ranks(2).ranks == ranks and recipe.on_ranks(2).on_ranks(1).ranks == ranks


def test_outside_torchrun_nothing_is_joined(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert distributed.start() is None
    run = object()
    assert distributed.share(run, None) is run
    assert (distributed.rank_of(None), distributed.world_of(None)) == (0, 1)
    assert distributed.any_rank(True, None) and not distributed.any_rank(False, None)
    distributed.broadcast_weights(child.build("switches")[0], None)
    distributed.finish()


def test_ranks_may_not_train_where_training_is_switched_off(tmp_path, monkeypatch):
    run = RunStore(tmp_path / "runs", tmp_path / "none").open({"paper": "x", "scale": "smoke"}, "code", "data")
    monkeypatch.setenv(experiment.NO_TRAINING, "1")
    monkeypatch.setattr(distributed.SharedRun, "result", lambda self: None)  # nobody to ask: there is one process
    with pytest.raises(SlimnbError, match=r"StoreError.*scale='smoke'"):
        experiment.finished(distributed.SharedRun(run, None), lambda: pytest.fail("trained"))


def test_ranks_that_cannot_meet_say_so_in_one_line(monkeypatch):
    values = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "99999",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SlimnbError, match=r"ResourceError: rank 0 at 127\.0\.0\.1:99999") as caught:
        distributed.start()
    assert caught.value.exit_status == 6 and len(str(caught.value)) <= 240
