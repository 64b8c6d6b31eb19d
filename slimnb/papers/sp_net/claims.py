"""What chapter 02 claims: sorting changes nothing, pruned counts beat uniform ones, and sorted subnets are fast."""

from __future__ import annotations

from collections.abc import Mapping

from slimnb.book.claims import Claim, by_id
from slimnb.papers.sp_net.recipes import CHAPTER

SOURCE = "SP-Net, Table "
NETS = {"mobilenet_v1": "MobileNetV1", "resnet": "ResNet-50", "vgg": "VGG", "mobilenet_v2": "MobileNetV2"}
TIMES = "times S-Net"


def better(id: str, statement: str, table: str, arms: tuple[str, str], paper_value: float | None) -> Claim:
    """The claim that the first arm's error is at least half a point below the second's."""
    return Claim(id, CHAPTER, statement, SOURCE + table, "error", "superiority", arms, delta=0.5,
                 direction="less", paper_value=paper_value)


def of_nets(id: str, statement: str, arms: tuple[str, str],
            printed: Mapping[str, tuple[int, float, float]]) -> dict[str, Claim]:
    """A claim like `better` for each net; `printed` are table and errors of both arms in the paper, %."""
    return {net: better(f"{id}-{net.replace('_', '-')}", f"{statement}, {NETS[net]}",
                        f"{table}: {a} against {b} %", arms, round(b - a, 1)) for net, (table, a, b) in printed.items()}


OVER_S_NET = of_nets("sp-net-beats-s-net", "SP-Net beats S-Net", ("SP-Net", "S-Net"), {
    "mobilenet_v1": (3, 32.0, 34.7), "resnet": (2, 22.3, 25.6), "vgg": (2, 23.9, 27.6),
    "mobilenet_v2": (3, 27.7, 30.8)})
OVER_ALONE = of_nets("sp-net-beats-individual", "SP-Net beats a net of its own", ("SP-Net", "Individual"), {
    "mobilenet_v1": (3, 32.0, 34.9), "resnet": (2, 22.3, 25.3), "vgg": (2, 23.9, 27.5),
    "mobilenet_v2": (3, 27.7, 30.3)})
OVER_UNIFORM = {net: better(
    f"pruned-counts-beat-uniform-counts-{net.replace('_', '-')}", f"Pruned counts beat uniform counts, {name}",
    "2 and 3 have no such arm; ours", ("SP-Net", "Uniform counts"), None) for net, name in NETS.items()}
"""By net. The first two are about the whole recipe, the third about what pruning found."""

ABLATIONS = [
    better("multi-base-beats-one-shot", "Multi-base beats one-shot pruning", "6", ("SP-Net", "One-shot"), 0.7),
    better("multi-base-beats-iterative", "Multi-base beats iterative pruning", "6", ("SP-Net", "Iterative"), 1.1),
    better("padding-beats-shortcut-first", "Zero padding match beats the shortcut's mask", "8",
           ("One-shot", "Shortcut first"), 2.4),
    better("gammas-beat-l1-norms", "Gammas choose better than L1 norms", "9", ("SP-Net", "L1 norms"), 2.3),
    better("drawn-anew-beats-individual", "SP-Net without a longer training beats nets of their own",
           "2 has no such arm; ours", ("Drawn anew", "Individual"), None)]

EXACT = [
    Claim("sorting-changes-nothing", CHAPTER, "Sorting channels leaves a net's logits as they are",
          "SP-Net, section 3.3", "logits", "exact", ("sorted", "unsorted"), delta=1e-5, unit="of the largest logit"),
    Claim("pruned-macs-within-target", CHAPTER, "By the paper's count no pruned subnet has more MACs than its target",
          "SP-Net, section 3.2: the same FLOPs", "macs", "exact", ("MACs above the target", "none"), delta=0,
          unit="MACs")]

TIME = [  # the bound of one half more is ours, and generous: the paper has 1.31 times at .25x
    Claim("sorted-faster-than-unsorted", CHAPTER, "Sorting makes a pruned ResNet-50 faster",
          SOURCE + "7: 13.5 against 24.3 ms at .25x", TIMES, "superiority",
          ("SP-Net, sorted", "SP-Net, unsorted"), delta=0.1, direction="less", paper_value=1.05, unit=TIMES),
    Claim("sorted-near-s-net", CHAPTER, "A sorted pruned ResNet-50 takes at most half as long again as S-Net's",
          SOURCE + "7: 13.5 against 10.3 ms at .25x", TIMES, "superiority", ("SP-Net, sorted", "1.5"),
          delta=0, direction="less", paper_value=0.19, unit=TIMES),
    Claim("sorted-as-fast-as-s-net", CHAPTER, "On average over three nets a sorted subnet takes as long as S-Net's",
          SOURCE + "10: VGG, MobileNetV1, MobileNetV2, 9 subnets", TIMES, "equivalence", ("SP-Net, sorted", "S-Net"),
          delta=0.1, paper_value=0.025, unit=TIMES)]

CLAIMS = by_id([*EXACT, *OVER_S_NET.values(), *OVER_ALONE.values(), *OVER_UNIFORM.values(), *ABLATIONS, *TIME])
