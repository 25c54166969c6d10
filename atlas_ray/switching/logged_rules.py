"""A classifier from logs, where a gateway asked QUICK in DEEPTHINK's shadow: a switch without an environment (ours).

What is fitted is what play fits (:mod:`atlas_ray.switching.calibration`), to DEEPTHINK's steps of episodes that
succeeded, of which the record says whether QUICK would have done the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..recipe.switch import Switch
from .calibration import Calibration, Doubt
from .features import EXTRA
from .fitted_values import Decide
from .logistic import fit, read
from .logs import LoggedEpisode
from .policies import PolicySpec, baselines
from .policy import SwitchPolicy
from .signals import CLASSIFIER, of_classifier
from .transitions import pasts


def fit_to_logs(episodes: Sequence[LoggedEpisode], say: Callable[[str], None]) -> Calibration:
    """What a classifier is set by; nothing where no step says whether QUICK would have done the same.

    Where episodes with such steps succeeded, only those count. A rate is a share of all steps of all these episodes,
    whoever took them: what a switch does leads to other states, where it may call more often or less.

    Args:
        episodes: that are learned from, each with its whole past.
        say: told what it is fitted to.
    """
    asked = [episode for episode in episodes if any(same is not None for same in episode.same)]
    if not asked:
        return Calibration()
    used = [episode for episode in asked if episode.success] or asked
    features, labels = [], []
    for episode in used:
        for text, past, same in zip(episode.texts, pasts(episode), episode.same, strict=True):
            if same is not None:
                features.append(read(text, past._replace(acted=())))
                labels.append(same)
    weights = fit(features, labels)
    chances = [of_classifier(weights, e.texts[n], past) for e in episodes for n, past in enumerate(pasts(e))]
    say(
        f"  {CLASSIFIER}: fitted to {len(labels):,} steps of {len(used):,} of {len(episodes):,} logged episodes; QUICK "
        f"says the same at {sum(labels) / len(labels):.0%} of them"
    )
    return Calibration(doubts={CLASSIFIER: Doubt(weights, np.array(chances, np.float32).tolist())})


def logged_rules(settings: Switch, calibration: Calibration) -> list[PolicySpec]:
    """The classifiers of a recipe at its rates; none where logs do not teach them."""
    if CLASSIFIER not in calibration.doubts:
        return []
    return baselines(settings.model_copy(update={"baselines": [CLASSIFIER]}), [], [], calibration)


def decides(rule: PolicySpec, width: int) -> Decide:
    """What a rule does by the features of transitions whose last signal, at ``width - 1``, is its own."""
    policy = rule.make_policy(0)
    assert isinstance(policy, SwitchPolicy)
    own = [width - 1, *range(width, width + EXTRA)]
    return lambda features: policy.numbers(features[:, own]).argmax(-1)
