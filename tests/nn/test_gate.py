"""Double-headed gates: both heads by hand, straight-through choices, ties, bad input."""

import pytest
import torch
import torch.nn.functional as F

from slimnb.errors import SlimnbError
from slimnb.nn.gate import MARGIN, Gate, Gated
from slimnb.nn.layers import Selection

WIDTHS = ((8, 16), (16, 24), (32, 40))
RULES = {"rules": (1, 2), "widths": WIDTHS, "most": (32, 40)}


def gate(channels=24, hidden=6, seed=0, **options) -> Gate:
    made = Gate(channels, hidden, sources=(0,), **RULES | options).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64))
    return made


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(made: Gate, x, route):
    s = Selection([x.shape[1], None, None], routing=route)
    return made(x, s), s


@pytest.mark.parametrize("delta", ["tanh", "sigmoid"])
@pytest.mark.parametrize("channels", [24, 16, 8])
def test_the_attention_head_is_equation_9_with_the_rows_of_w3(delta, channels):
    made, x = gate(delta=delta), noise(5, channels, 4, 4)
    hidden = (x.mean((2, 3)) @ made.reduce_weight[:, :channels].T + made.reduce_bias).relu()
    z = hidden @ made.attend_weight[:channels].T + made.attend_bias[:channels]
    factor = 1 + z.tanh() if delta == "tanh" else z.sigmoid()
    s = Selection((channels, 0, 0))
    torch.testing.assert_close(made(x, s), x * factor[:, :, None, None])
    torch.testing.assert_close(made.extract(s)(x), made(x, s))


def test_attention_starts_as_the_identity_and_the_gate_at_the_narrowest():
    made = Gate(24, 6, sources=(0,), **RULES)
    made.reset(torch.Generator().manual_seed(0))
    x = noise(4, 24, 4, 4).float()
    assert torch.equal(made(x, Selection((24, 0, 0))), x)
    torch.nn.init.zeros_(made.slim_weight)
    route = Gated()
    _, s = run(made, x, route)
    assert s.decisions[0].weights.argmax(1).tolist() == [0] * 4


def test_the_slimming_head_is_equation_8_and_its_masks_are_the_widths_chosen():
    made, x, route = gate(), noise(50, 16, 4, 4), Gated()
    _, s = run(made, x, route)
    hidden = (x.mean((2, 3)) @ made.reduce_weight[:, :16].T + made.reduce_bias).relu()
    best = (hidden @ made.slim_weight.T).argmax(1)
    assert set(best.tolist()) == {0, 1, 2}
    for k, row, wide in zip(best.tolist(), s.widths[1], s.widths[2], strict=True):
        assert (int(row.sum()), int(wide.sum())) == WIDTHS[k]
        assert row[: WIDTHS[k][0]].all() and wide[: WIDTHS[k][1]].all()


def test_an_unshared_head_has_a_reduction_of_its_own():
    made, x, route = gate(shared=False), noise(9, 24, 4, 4), Gated()
    _, s = run(made, x, route)
    hidden = (x.mean((2, 3)) @ made.slim_reduce_weight.T + made.slim_reduce_bias).relu()
    torch.testing.assert_close(s.decisions[0].scores, hidden @ made.slim_weight.T)
    own = made.slim_weight, made.slim_reduce_weight, made.slim_reduce_bias
    assert {id(p) for p in made.heads()} == set(map(id, own))


@pytest.mark.parametrize("lowest", [None, 2, 1])
def test_straight_through_is_one_hot_forward_and_gumbel_softmax_backward(lowest):
    made, x = gate(), noise(64, 24, 4, 4)
    route = Gated(lowest, temperature=0.7, seed=3, step=5)
    _, s = run(made, x, route)
    seen, wide = s.decisions[0], lowest or 3
    assert seen.scores.shape == (64, wide) and seen.weights.shape == (64, 3)
    assert torch.equal(seen.weights.detach().sort(1).values, torch.tensor([0.0, 0, 1]).double().expand(64, 3))
    assert not seen.weights[:, wide:].any()
    towards = noise(64, 3, seed=7)
    got, = torch.autograd.grad((seen.weights * towards).sum(), made.slim_weight, retain_graph=True)
    again = Gated(lowest, temperature=0.7, seed=3, step=5)
    _, s_again = run(made, x, again)
    # The soft choice by hand: the noise is what turns these scores into those of the hard choice's softmax.
    from slimnb.rng import keyed_uniform
    index = torch.arange(64 * wide).view(64, wide)
    gumbel = -torch.log(-torch.log(keyed_uniform(3, "gumbel 0", 5, index).clamp(min=2.0**-25)))
    soft = ((s_again.decisions[0].scores + gumbel) / 0.7).softmax(1)
    assert torch.equal(soft.argmax(1), seen.weights.argmax(1))
    expected, = torch.autograd.grad((soft * towards[:, :wide]).sum(), made.slim_weight)
    torch.testing.assert_close(got, expected)


def test_the_choices_of_gumbel_softmax_have_the_softmax_s_frequencies():
    made, x = gate(), noise(1, 24, 4, 4).expand(20_000, -1, -1, -1)
    made.slim_weight.data.mul_(0.1)
    route = Gated(temperature=5.0)
    _, s = run(made, x, route)
    shares = s.decisions[0].weights.mean(0)
    torch.testing.assert_close(shares, s.decisions[0].scores[0].softmax(0), atol=0.012, rtol=0)


def test_noise_is_a_function_of_seed_and_step_alone():
    made, x = gate(), noise(64, 24, 4, 4)

    def chosen(**key):
        torch.manual_seed(torch.initial_seed() + 1)
        route = Gated(temperature=5.0, **key)
        _, s = run(made, x, route)
        return s.decisions[0].weights.argmax(1)

    assert torch.equal(chosen(seed=1, step=2), chosen(seed=1, step=2))
    assert not torch.equal(chosen(seed=1, step=2), chosen(seed=1, step=3))
    assert not torch.equal(chosen(seed=1, step=2), chosen(seed=2, step=2))


def test_near_ties_go_to_the_narrowest():
    made = gate()
    scores = torch.tensor([[1.0, 1.0 + MARGIN / 2, 0.0], [0.0, 1.0, 1.0 - MARGIN / 2], [0.0, 1.0, 1.0 + 3 * MARGIN]])
    assert made.best(scores, 3).tolist() == [0, 1, 2]


def test_a_scalar_head_takes_the_nearest_choice_and_has_its_neighbours_gradient():
    made = gate(head="scalar")
    assert made.slim_weight.shape == (1, 6)
    scores = torch.logit(torch.tensor([[0.05], [0.3], [0.6], [0.9]]))
    assert made.best(scores, 3).tolist() == [0, 1, 1, 2]
    x, route = noise(30, 24, 4, 4), Gated(temperature=1.0)
    _, s = run(made, x, route)
    seen = s.decisions[0]
    place = seen.scores.sigmoid()[:, 0] * 2
    expected, = torch.autograd.grad(place.sum(), made.slim_weight, retain_graph=True)
    got, = torch.autograd.grad((seen.weights @ torch.tensor([0.0, 1, 2]).double()).sum(), made.slim_weight)
    torch.testing.assert_close(got, expected)  # the expected index of the soft choice is where the scalar says


def test_slots_mix_by_the_choice():
    made, x, route = gate(), noise(12, 24, 4, 4), Gated()
    made.slots = F.one_hot(torch.tensor([4, 2, 0]), 5).double()
    _, s = run(made, x, route)
    assert torch.equal(s.slot.argmax(1), torch.tensor([4, 2, 0])[s.decisions[0].weights.argmax(1)])


@pytest.mark.parametrize(("wrong", "code", "word"), [
    (lambda: Gated(lowest=0), "ParameterError", "lowest = 0"),
    (lambda: run(gate(), noise(2, 24, 4, 4), Gated(lowest=4)), "ParameterError", "3 choices"),
    (lambda: Gated(temperature=0.0), "ParameterError", "temperature = 0.0"),
    (lambda: Gated(temperature=float("nan")), "ParameterError", "nan"),
    (lambda: gate(widths=((8, 16),)), "ParameterError", "1 choices"),
    (lambda: gate(widths=((8, 16), (16,))), "ParameterError", "2 channel units"),
    (lambda: gate(widths=((8, 16), (16, 16))), "ParameterError", "16, 16"),
    (lambda: gate(widths=((16, 16), (8, 24))), "ParameterError", "16, 8"),
    (lambda: gate(head="two-hot"), "ParameterError", "two-hot"),
])
def test_bad_input_is_one_line(wrong, code, word):
    with pytest.raises(SlimnbError) as caught:
        wrong()
    assert type(caught.value).__name__ == code and word in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 240
