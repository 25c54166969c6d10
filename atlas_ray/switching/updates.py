"""One gradient update of a switch in plain torch: double DQN and discrete SAC, with calls that may be masked.

The losses are RLlib's (Huber, double Q; for SAC twin Q networks and a temperature that is learned), and the tests hold
them to RLlib's own. What differs is around them: RLlib makes connectors, metrics and Python objects for each update,
which takes two to three times as long as the update of networks this small.

Discrete SAC after Christodoulou (arXiv 1910.07207), with the trap that a masked action has log-probability minus
infinity and probability 0, whose product is not a number: it is left out of every sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import huber_loss

from .features import DISCOUNTS

if TYPE_CHECKING:
    from .network import SwitchNetwork

Batch = dict[str, torch.Tensor]
"""``obs`` and ``new_obs`` ``[B, F]``, ``actions`` ``[B]`` int64, ``rewards`` ``[B]``, ``terminateds`` ``[B]`` bool.

``DISCOUNTS`` ``[B]``, where transitions are of several steps: of what follows each, in the place of gamma.
"""


def action_values(q_BK: torch.Tensor, actions_B: torch.Tensor) -> torch.Tensor:
    """``[B]``: the values of the actions; 0 for one that is masked, which the guard turned into a step of QUICK."""
    return q_BK.gather(1, actions_B[:, None])[:, 0].nan_to_num(neginf=0.0)


def dqn_loss(net: SwitchNetwork, target: SwitchNetwork, batch: Batch, gamma: float) -> torch.Tensor:
    """Huber loss of double Q-learning (van Hasselt et al. 2016)."""
    both_BK = net(torch.cat([batch["obs"], batch["new_obs"]]))
    now_BK, next_BK = both_BK.chunk(2)
    with torch.no_grad():
        ahead_B = action_values(target(batch["new_obs"]), next_BK.argmax(-1))
        aim_B = batch["rewards"] + batch.get(DISCOUNTS, gamma) * ~batch["terminateds"] * ahead_B
    return huber_loss(action_values(now_BK, batch["actions"]), aim_B)


def doubt_loss(net: SwitchNetwork, batch: Batch, least_K: torch.Tensor) -> torch.Tensor:
    """Draws each model's value in each state to the least it may be worth, as strongly as little is known of it [ours].

    ``batch["uncertainty"]`` ``[B, K]`` is about one over the like steps of a model that were logged, so this adds a few
    steps of the worst outcome to the data, of models that were not chosen too: a fitted Q with a lower bound, whose
    bias falls with the data. CQL (Kumar et al. 2020) draws down whatever was chosen less often than the policy would,
    however much is known of it: a rare call that pays would stay too dear.
    """
    q_BK = net(batch["obs"])
    above_BK = zero_masked(q_BK) - least_K.where(q_BK > -torch.inf, 0.0)
    return 0.5 * (batch["uncertainty"] * above_BK**2).sum(-1).mean()


def sac_losses(
    pi: SwitchNetwork,
    critics: tuple[SwitchNetwork, SwitchNetwork],
    targets: tuple[SwitchNetwork, SwitchNetwork],
    log_alpha: torch.Tensor,
    batch: Batch,
    gamma: float,
    target_entropy: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses of the critics (their sum), of the policy and of the temperature."""
    alpha = log_alpha.exp().detach()
    logits_BK, next_logits_BK = pi(torch.cat([batch["obs"], batch["new_obs"]])).chunk(2)
    with torch.no_grad():
        probs_BK, logs_BK = probabilities(next_logits_BK)
        ahead_BK = torch.minimum(*(target(batch["new_obs"]) for target in targets))
        value_B = (probs_BK * (zero_masked(ahead_BK) - alpha * logs_BK)).sum(-1)
        aim_B = batch["rewards"] + batch.get(DISCOUNTS, gamma) * ~batch["terminateds"] * value_B
    q_BK = [critic(batch["obs"]) for critic in critics]
    critic_loss = torch.stack([huber_loss(action_values(q, batch["actions"]), aim_B) for q in q_BK]).sum()
    probs_BK, logs_BK = probabilities(logits_BK)
    worth_BK = zero_masked(torch.minimum(*q_BK)).detach()
    policy_loss = (probs_BK * (alpha * logs_BK - worth_BK)).sum(-1).mean()
    entropy_B = (probs_BK * logs_BK).sum(-1).detach()
    alpha_loss = -(log_alpha * (entropy_B + target_entropy)).mean()
    return critic_loss, policy_loss, alpha_loss


def probabilities(logits_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and their logarithms ``[B, K]``, both 0 where an action is masked."""
    logs_BK = logits_BK.log_softmax(-1)
    return logs_BK.exp(), zero_masked(logs_BK)


def zero_masked(x: torch.Tensor) -> torch.Tensor:
    """``x`` with 0 in place of minus infinity, in the gradient too."""
    return x.masked_fill(x == -torch.inf, 0.0)
