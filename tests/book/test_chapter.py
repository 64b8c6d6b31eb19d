"""What a chapter does first and last: device, places of figures and claims, the mark of its end."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from refusals import refused

from slimnb.book.chapter import Chapter, find_root
from slimnb.book.claims import Claim
from slimnb.book.parameters import Float
from slimnb.data.datasets import load_data
from slimnb.data.sources import shown
from slimnb.errors import SlimnbError
from slimnb.runs.files import data_folder

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"scale": "smoke", "seed": 3, "seeds": 2, "device": "cpu", "data": "auto", "out": ""}


def chapter(tmp_path, **changes):
    return Chapter("01_tiny", GOOD | changes, "cpu", tmp_path)


def test_the_repository_is_found_from_wherever_a_kernel_stands(tmp_path):
    for folder in (ROOT, ROOT / "notebooks", ROOT / "tests", tmp_path):
        assert find_root(folder) == ROOT  # from elsewhere: the repository slimnb was installed from


def test_begin_checks_then_says_what_runs_where(capsys):
    begun = Chapter.begin("01_tiny", GOOD | {"lr": 0.1, "torch": torch}, lr=Float())
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "scale smoke | seed 3 to 4 | data synthetic | cpu" in line
    assert (begun.scale, begun.seed, list(begun.all_seeds), begun.device) == ("smoke", 3, [3, 4], "cpu")
    with pytest.raises(SlimnbError, match="Did you mean lr"):
        Chapter.begin("01_tiny", GOOD | {"lr": 0.1, "rl": 0.2}, lr=Float())
    refused("ParameterError", Chapter.begin, "../tiny", GOOD)


def test_the_set_up_cell_can_be_run_again_after_later_cells():
    begun = Chapter.begin("01_tiny", GOOD)
    later = GOOD | {"chapter": begun, "title": "made by a later cell", "width": 3}
    assert Chapter.begin("01_tiny", later).parameters == begun.parameters
    with pytest.raises(SlimnbError, match="ParameterError"):
        Chapter.begin("01_tiny", later | {"seed": -1})  # values are still checked


def test_a_device_that_is_not_there_is_refused_with_what_is(capsys):
    with pytest.raises(
        SlimnbError, match=r"ParameterError: device = 'cuda:99' — there are cpu and \d+ CUDA"
    ) as caught:
        Chapter.begin("01_tiny", GOOD | {"device": "cuda:99"})
    assert caught.value.exit_status == 2 and capsys.readouterr().out == ""
    automatic = Chapter.begin("01_tiny", GOOD | {"device": "auto"})
    assert automatic.device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_data_and_folders_mean_the_same_from_lab_and_papermill(tmp_path, monkeypatch):
    assert chapter(tmp_path).data_name == "synthetic"
    assert chapter(tmp_path, scale="small").data_name == "cifar100"
    assert chapter(tmp_path, data="cifar10").data_name == "cifar10"
    assert chapter(tmp_path, data="sets/faces").data_name == str(tmp_path / "sets/faces")
    assert chapter(tmp_path, data="/faces").data_name == "/faces"
    monkeypatch.delenv("SLIMNB_DATA", raising=False)
    assert chapter(tmp_path).data_root == tmp_path / "data"
    monkeypatch.setenv("SLIMNB_DATA", "/elsewhere")
    assert chapter(tmp_path).data_root == Path("/elsewhere")


def test_a_folder_that_cannot_take_the_figures_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("slimnb.book.chapter.find_root", lambda *_: tmp_path)
    (tmp_path / "file").touch()
    for out in ("file", "file/x", "n" * 200 + "/" + "n" * 300, "/proc/nowhere"):
        refused("ParameterError|StoreError", Chapter.begin, "01_tiny", GOOD | {"out": out})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "build/figures/01").mkdir(parents=True)
    (tmp_path / "build/figures/01/.tmp-0001-line.svg").symlink_to("/etc/passwd")
    Chapter.begin("01_tiny", GOOD | {"out": "mine"})
    assert list((tmp_path / "mine/01").iterdir()) == []


def test_a_relative_folder_of_data_sets_counts_from_the_repository_wherever_a_process_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, folder in (("sets", ROOT / "sets"), ("~/sets", tmp_path / "home/sets"), ("", ROOT / "data")):
        monkeypatch.setenv("SLIMNB_DATA", value)
        for place in (ROOT, ROOT / "notebooks", tmp_path):
            monkeypatch.chdir(place)
            assert data_folder() == chapter(ROOT).data_root == folder
            with pytest.raises(SlimnbError, match="not there") as caught:
                load_data("cifar10", cache=tmp_path / "cache")
            assert caught.value.what == shown(folder / "cifar10")


def test_only_results_above_smoke_go_where_they_are_committed(tmp_path):
    smoke, small = chapter(tmp_path), chapter(tmp_path, scale="small")
    assert smoke.out == tmp_path / "build/figures/01" and small.out == tmp_path / "figures/01"
    assert chapter(tmp_path, out="mine").out == tmp_path / "mine/01"
    assert smoke.ledger != small.ledger and smoke.ledger.is_relative_to(tmp_path / "build")


def test_a_figure_drawn_twice_has_the_same_bytes_and_says_what_it_shows(tmp_path):
    drawn = []
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([1, 3, 2])
        chapter(tmp_path).save(axes if not drawn else figure, "line", alt="A peak < at 2")
        drawn.append((tmp_path / "build/figures/01/line.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert "A peak < at 2" in "".join(ElementTree.fromstring(drawn[0]).itertext())
    assert [path.name for path in (tmp_path / "build/figures/01").iterdir()] == ["line.svg"]
    with pytest.raises(SlimnbError, match="ParameterError"):
        chapter(tmp_path).save(axes, "../line")


def test_a_claim_is_judged_at_the_chapters_scale_and_entered(tmp_path):
    claim = Claim(
        "macs-equal", "01_tiny", "They are equal", "Table 1", "macs", ("ours", "paper"), margin=0, kind="exact"
    )
    verdict = chapter(tmp_path).claim(claim, [569.0], [569.0])
    assert (verdict.verdict, verdict.scale) == ("holds", "smoke")
    assert "macs-equal" in chapter(tmp_path).ledger.read_text()


def test_the_end_is_said_in_a_plain_process_too(tmp_path, capsys):
    chapter(tmp_path).end()
    assert capsys.readouterr().out.startswith("01_tiny: finished at scale smoke in 0 s")
