"""Chapter 01: plain nets, one batch norm for all widths, S-Net, US-Net."""

from __future__ import annotations

from dataclasses import replace

from slimnb.train.recipe import FULL, FULL_32, SMALL, SMOKE, WIDTHS, Recipe, check_scale

SANDWICH_MULTS = tuple(round(0.25 + 0.025 * i, 3) for i in range(31))  # US-Net: any width in [.25, 1]


def arms(scale: str, seed: int, data, results=(), store=None) -> list[Recipe]:
    """The arms of chapter 01: plain nets of each width, one batch norm for all, S-Net, US-Net."""
    full = FULL if data.size > 32 else FULL_32
    base = replace({"smoke": SMOKE, "small": SMALL, "full": full}[check_scale(scale)], seed=seed)
    plain = [replace(base, arm="Individual", mults=(mult,)) for mult in WIDTHS]
    evaluated = tuple(round(0.25 + 0.125 * i, 3) for i in range(7))
    us_net = replace(base, arm="US-Net", method="sandwich", bn="calibrated", mults=evaluated,
                     train_mults=SANDWICH_MULTS)
    return [*plain, replace(base, arm="One BN", bn="one"), replace(base, arm="S-Net"), us_net]


STAGES = (arms,)
