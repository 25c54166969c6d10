"""The RLModules that RLlib trains: a network that acts, its exploration, and what learning needs beside it."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.schedules.scheduler import Scheduler

from .features import BUDGET_ENTRY, STEP_ENTRY
from .network import SwitchNetwork

QF_PREDS = "qf_preds"
_FINEST = 2**31
"""Most parts of a budget of which some may be held back; money has more picodollars."""


class SwitchModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI, QNetAPI):
    """``net`` acts. Reads from ``model_config``: ``hidden``, ``budget``, ``run``, ``epsilon`` (schedule over steps)."""

    net: SwitchNetwork

    def setup(self) -> None:
        """Build the network and the exploration schedule."""
        self.epsilon_schedule = Scheduler(
            fixed_value_or_schedule=self.model_config["epsilon"], framework=self.framework
        )
        self._plans_4B = torch.empty(4, 0)
        self.net = self.make_network()

    def make_network(self) -> SwitchNetwork:
        """A network of this module's shape."""
        inputs, models = self.observation_space.shape[0], int(self.action_space.n)
        return SwitchNetwork(inputs, self.model_config["hidden"], models, self.model_config["budget"] is not None)

    def get_initial_state(self) -> dict[str, Any]:
        """None: the network has no memory."""
        return {}

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Masked Q values ``[B, K]``."""
        return {QF_PREDS: self.net(batch[Columns.OBS])}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        return {Columns.ACTIONS: self.net(batch[Columns.OBS]).argmax(-1)}

    def _forward_exploration(self, batch: dict[str, Any], t: int, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The policy's own choices, and in a share of the episodes (epsilon) something else among them [ours].

        How many of such an episode's steps are random, and how many of those are calls, is drawn for every episode:
        with one half throughout, none would show what follows when hardly any call is made. Under a budget the policy
        is told of fewer calls than are left, up to a step that is drawn too, and from there calls are more frequent:
        else the budget would be gone after a few steps of every episode, and none would show what a late call is worth.
        """
        features_BF = batch[Columns.OBS]
        size = len(features_BF)
        self.epsilon_schedule.update(t)
        steps_B = features_BF[:, STEP_ENTRY]
        first_B = steps_B == 0
        if self._plans_4B.shape[1] != size:
            self._plans_4B, first_B = torch.empty(4, size), torch.ones(size, dtype=torch.bool)
        self._plans_4B = torch.where(first_B, self._draw_plans(size), self._plans_4B)
        random_B, calls_B, held_B, release_B = self._plans_4B
        left_B = features_BF[:, BUDGET_ENTRY]
        told_BF = features_BF.clone()
        holds_B = (held_B > 0) & (steps_B < release_B)
        told_B = torch.where(holds_B, left_B - held_B, left_B).clamp(min=0.0)
        if (run := self.model_config.get("run", 1)) > 1 and self.model_config["budget"]:
            # what allows no whole run is shown as nothing, as by the guard
            told_B = torch.where(told_B * self.model_config["budget"] > run - 0.5, told_B, 0.0)
        told_BF[:, BUDGET_ENTRY] = told_B
        own_B = self.policy_actions(self.net(told_BF))
        released_B = (held_B > 0) & ~holds_B
        called_B = torch.rand(size) < torch.where(released_B, 0.5, calls_B)
        called_B &= (left_B > 0) | (not self.net.budgeted)
        drawn_B = called_B * (torch.randint(1, self.net.models, (size,)) if self.net.models > 2 else 1)
        return {Columns.ACTIONS: torch.where(torch.rand(size) < random_B, drawn_B, own_B)}

    def policy_actions(self, numbers_BK: torch.Tensor) -> torch.Tensor:
        """``[B]``: what the policy itself does while it explores."""
        return numbers_BK.argmax(-1)

    def _draw_plans(self, count: int) -> torch.Tensor:
        """How each of ``count`` episodes explores, ``[4, count]``.

        The share of random steps, of calls among those, of the budget that is held back, and of the steps until which
        it is.
        """
        explores_B = torch.rand(count) < self.epsilon_schedule.get_current_value()
        random_B, calls_B, release_B = torch.rand(3, count)
        budget = min(self.model_config["budget"] or 0, _FINEST)
        held_B = torch.randint(budget + 1, (count,)) / max(1, budget)
        if budget:
            calls_B = calls_B**3
        return torch.stack([random_B * explores_B, calls_B, held_B * explores_B, release_B])


class DQNModule(SwitchModule):
    """``net`` is the Q network."""

    def get_non_inference_attributes(self) -> list[str]:
        """What an environment runner can do without."""
        return ["target"]

    def make_target_networks(self) -> None:
        """A copy that follows the network slowly."""
        self.target = make_target_network(self.net)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """The network and its copy."""
        return [(self.net, self.target)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Masked Q values ``[B, K]`` of the target network."""
        return {QF_PREDS: self.target(batch[Columns.OBS])}


class SACModule(SwitchModule):
    """``net`` is the policy, whose numbers are logits; ``critic`` and ``twin`` are the Q networks."""

    def setup(self) -> None:
        """Build policy and, where it learns, critics."""
        super().setup()
        if not self.inference_only:
            self.critic, self.twin = self.make_network(), self.make_network()

    def get_non_inference_attributes(self) -> list[str]:
        """What an environment runner can do without."""
        return ["critic", "twin", "critic_target", "twin_target"]

    def make_target_networks(self) -> None:
        """Copies that follow the critics slowly."""
        self.critic_target, self.twin_target = make_target_network(self.critic), make_target_network(self.twin)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """The critics and their copies."""
        return [(self.critic, self.critic_target), (self.twin, self.twin_target)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Masked Q values ``[B, K]`` of the target networks, the smaller of the two."""
        return {QF_PREDS: torch.minimum(self.critic_target(batch[Columns.OBS]), self.twin_target(batch[Columns.OBS]))}

    def policy_actions(self, numbers_BK: torch.Tensor) -> torch.Tensor:
        """``[B]``: drawn from the policy."""
        return torch.multinomial(numbers_BK.softmax(-1), 1)[:, 0]
