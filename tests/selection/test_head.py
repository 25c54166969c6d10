"""The logistic regression behind `distilled`: its optimum, its penalty, its calibration, its files."""

import numpy as np
import pytest
import torch

from atlas_ray.errors import InputError
from atlas_ray.selection.head import PENALTIES, Head, Steps, calibration, fit_head

GROUPS = (3, 2)


def drawn(count, seed=0):
    """Steps whose marks follow from a feature of each group, with noise; features of unlike scale, one constant."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 5)) * [1, 10, 0, 0.1, 1] + [0, 5, 2, 0, 0]
    odds = 2 * features[:, 0] - 15 * features[:, 3] + rng.logistic(size=count)
    return Steps(features.astype(np.float32), odds > 0.5)


def standardised(steps, groups=GROUPS):
    """Inputs and the last column of ones."""
    x = steps.features_NF.astype(np.float64)
    spread = np.where(x.std(0) > 1e-5, x.std(0), 1.0) * np.sqrt(np.repeat(groups, groups))
    return np.c_[(x - x.mean(0)) / spread, np.ones(len(x))]


def newton(inputs, marked, penalty):
    """Ridge logistic regression by Newton's method."""
    ridge = penalty * np.diag([*[1.0] * (inputs.shape[1] - 1), 0.0])
    w = np.zeros(inputs.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-inputs @ w))
        gradient = inputs.T @ (p - marked) / len(marked) + ridge @ w
        w -= np.linalg.solve((inputs.T * (p * (1 - p))) @ inputs / len(marked) + ridge, gradient)
    return w


def test_the_gradient_is_zero_at_the_weights_and_newtons_method_finds_the_same():
    fit, tune = drawn(400), drawn(200, seed=1)
    head = fit_head(fit, tune, GROUPS)
    inputs = standardised(fit)
    weights = np.r_[head.weights_F, head.bias]
    p = 1 / (1 + np.exp(-inputs @ weights))
    gradient = inputs.T @ (p - fit.marked_N) / len(p) + head.penalty * np.r_[head.weights_F, 0.0]
    assert np.abs(gradient).max() < 1e-6
    assert weights == pytest.approx(newton(inputs, fit.marked_N, head.penalty), abs=1e-5)
    assert head.scores(fit.features_NF) == pytest.approx(inputs @ weights, abs=1e-9)
    assert head.weights_F[2] == 0.0, "a constant feature says nothing"


def test_the_penalty_does_best_on_the_steps_that_tune():
    fit, tune = drawn(60), drawn(400, seed=1)
    losses = []
    for penalty in PENALTIES:
        w = newton(standardised(fit), fit.marked_N, penalty)
        x = fit.features_NF.astype(np.float64)
        spread = np.where(x.std(0) > 1e-5, x.std(0), 1.0) * np.sqrt(np.repeat(GROUPS, GROUPS))
        p = 1 / (1 + np.exp(-np.c_[(tune.features_NF - x.mean(0)) / spread, np.ones(400)] @ w))
        losses.append(-np.log(np.where(tune.marked_N, p, 1 - p)).mean())
    assert fit_head(fit, tune, GROUPS).penalty == PENALTIES[int(np.argmin(losses))]


def test_two_scores_are_calibrated_to_the_mean_of_their_targets():
    scores = np.repeat([-3.0, 5.0], [40, 60])
    marked = np.r_[np.arange(40) < 10, np.arange(60) < 50]
    slope, offset = calibration(scores, marked)
    high, low = 61 / 62, 1 / 42  # Platt's targets for 60 marked and 40 unmarked steps
    for score, share in ((-3.0, 10 / 40), (5.0, 50 / 60)):
        target = share * high + (1 - share) * low
        assert 1 / (1 + np.exp(-(slope * score + offset))) == pytest.approx(target, abs=1e-7)


def test_scores_that_are_all_the_same_are_calibrated_to_the_share():
    slope, offset = calibration(np.full(50, 2.0), np.arange(50) < 20)
    share = (20 * 21 / 22 + 30 / 32) / 50
    assert 1 / (1 + np.exp(-(slope * 2.0 + offset))) == pytest.approx(share, abs=1e-7)


def test_a_head_is_the_same_whatever_was_drawn_before_and_when_it_is_read_again(tmp_path):
    fit, tune = drawn(200), drawn(100, seed=1)
    made = []
    for name in ("a", "b"):
        torch.manual_seed(len(made))
        head = fit_head(fit, tune, GROUPS)
        head.save(tmp_path / f"{name}.safetensors", tmp_path / f"{name}.json", {"threshold": 0.5})
        made.append([(tmp_path / f"{name}.{end}").read_bytes() for end in ("safetensors", "json")])
    assert made[0] == made[1]
    read = Head.load(tmp_path / "a.safetensors", tmp_path / "a.json")
    assert (read.probabilities(tune.features_NF) == head.probabilities(tune.features_NF)).all()


@pytest.mark.parametrize("broken", ["a.safetensors", "a.json"])
def test_a_head_that_is_damaged_is_refused(tmp_path, broken):
    fit_head(drawn(50), drawn(50), GROUPS).save(tmp_path / "a.safetensors", tmp_path / "a.json", {})
    (tmp_path / broken).write_text("{}")
    with pytest.raises(InputError, match="no head"):
        Head.load(tmp_path / "a.safetensors", tmp_path / "a.json")


def test_a_fit_takes_steps_of_both_kinds():
    assert drawn(30).of_both_kinds
    assert [Steps(np.zeros((3, 5)), np.full(3, kind)).of_both_kinds for kind in (True, False)] == [False, False]
