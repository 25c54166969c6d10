"""The RLModule that RLlib's DQN trains: :class:`SwitchNetwork` with its target and a masked epsilon-greedy exploration."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.utils.schedules.scheduler import Scheduler

from .features import STEP_ENTRY
from .network import SwitchNetwork


class SwitchModule(DefaultDQNTorchRLModule):
    """Reads from ``model_config``: ``hidden``, ``budgeted``, ``epsilon`` (schedule over environment steps)."""

    def setup(self) -> None:
        """Build the network and the exploration schedule."""
        self.uses_dueling, self.uses_double_q, self.num_atoms = False, True, 1
        self.epsilon_schedule = Scheduler(
            fixed_value_or_schedule=self.model_config["epsilon"], framework=self.framework
        )
        self._rates_B = torch.empty(0)
        self.net = SwitchNetwork(
            self.observation_space.shape[0],
            self.model_config["hidden"],
            int(self.action_space.n),
            self.model_config["budgeted"],
        )

    def get_non_inference_attributes(self) -> list[str]:
        """What an environment runner can do without."""
        return ["_target_net"]

    def make_target_networks(self) -> None:
        """A copy that follows the network slowly."""
        self._target_net = make_target_network(self.net)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """The network and its copy."""
        return [(self.net, self._target_net)]

    def get_initial_state(self) -> dict[str, Any]:
        """None: the network has no memory."""
        return {}

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Masked Q values ``[B, 2]``."""
        return {QF_PREDS: self.net(batch[Columns.OBS])}

    def forward_target(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Masked Q values ``[B, 2]`` of the target network."""
        return {QF_PREDS: self._target_net(batch[Columns.OBS])}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        return {Columns.ACTIONS: self.net(batch[Columns.OBS]).argmax(-1)}

    def _forward_exploration(self, batch: dict[str, Any], t: int, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Epsilon-greedy, with a share of calls among the random actions that is drawn anew for every episode.

        With one half throughout, the budget would be gone after a few steps of every episode and no episode would show
        what a late call is worth; nor would one without a budget show what follows when hardly any call is made.
        """
        features_BF = batch[Columns.OBS]
        q_B2 = self.net(features_BF)
        if self._rates_B.shape != q_B2.shape[:1]:
            self._rates_B = self._draw(len(q_B2))
        self._rates_B = torch.where(features_BF[:, STEP_ENTRY] == 0, self._draw(len(q_B2)), self._rates_B)
        self.epsilon_schedule.update(t)
        explore_B = torch.rand(len(q_B2)) < self.epsilon_schedule.get_current_value()
        random_B = (torch.rand(len(q_B2)) < self._rates_B) & torch.isfinite(q_B2[:, 1])
        return {Columns.ACTIONS: torch.where(explore_B, random_B.long(), q_B2.argmax(-1))}

    def _draw(self, count: int) -> torch.Tensor:
        """Shares of calls: uniform, or mostly small under a budget."""
        uniform_B = torch.rand(count)
        return uniform_B**3 if self.net.budgeted else uniform_B
