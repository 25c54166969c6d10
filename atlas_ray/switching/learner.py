"""RLlib's learners of DQN and SAC with many updates in a call, see :mod:`atlas_ray.switching.updates`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID

from ..ray_private import log_temperature, target_entropy
from .updates import Batch, doubt_loss, dqn_loss, sac_losses


class _ManyUpdates:
    """``updates * minibatch_size`` transitions are so many updates, with the target networks moved each time."""

    def update(
        self, *, training_data: Any, minibatch_size: int, timesteps: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        """One pass over the batch, in its order."""
        learner: Any = self
        learner.before_gradient_based_update(timesteps=timesteps)
        module = learner.module[DEFAULT_MODULE_ID].unwrapped()
        tau = learner.config.tau
        pairs = [
            (list(main.parameters()), list(target.parameters())) for main, target in module.get_target_network_pairs()
        ]
        for batch in _minibatches(training_data.batch[DEFAULT_MODULE_ID], minibatch_size):
            self.one(module, batch)
            for main, target in pairs:
                with torch.no_grad():
                    torch._foreach_lerp_(target, main, tau)
        # moves the learning rates; RLlib's own move of the target networks is switched off by its frequency
        learner.after_gradient_based_update(timesteps=timesteps)
        return {}

    def one(self, module: Any, batch: Batch) -> None:
        """One update."""
        raise NotImplementedError

    def register(self, name: str, parameters: list[torch.Tensor], rate: Any) -> None:
        """Adam for these parameters."""
        learner: Any = self
        learner.register_optimizer(
            module_id=DEFAULT_MODULE_ID,
            optimizer_name=name,
            optimizer=torch.optim.Adam(parameters, fused=True),
            params=parameters,
            lr_or_lr_schedule=rate,
        )

    def descend(self, name: str, loss: torch.Tensor, parameters: list[torch.Tensor]) -> None:
        """A clipped step of the optimiser ``name`` down the loss, in these parameters alone."""
        learner: Any = self
        optimizer = learner.get_optimizer(DEFAULT_MODULE_ID, name)
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, learner.config.grad_clip)
        optimizer.step()


def _minibatches(columns: Any, size: int) -> Iterator[Batch]:
    tensors = {name: torch.from_numpy(columns[name]) for name in columns}
    for start in range(0, len(columns["actions"]), size):
        yield {name: tensor[start : start + size] for name, tensor in tensors.items()}


class SwitchDQNLearner(_ManyUpdates, DQNTorchLearner):
    """Double DQN."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam."""
        self.register("q", list(self.module[module_id].unwrapped().net.parameters()), config.lr)

    def one(self, module: Any, batch: Batch) -> None:
        """One update."""
        loss = dqn_loss(module.net, module.target, batch, self.config.gamma)
        self.descend("q", loss, list(module.net.parameters()))


class LoggedDQNLearner(SwitchDQNLearner):
    """Double DQN on logs: what they hardly say anything of is drawn to the least that it may be worth."""

    def one(self, module: Any, batch: Batch) -> None:
        """One update."""
        context = self.config.env_config
        loss = dqn_loss(module.net, module.target, batch, self.config.gamma)
        loss = loss + context["pessimism"] * doubt_loss(module.net, batch, torch.from_numpy(context["least"]))
        self.descend("q", loss, list(module.net.parameters()))


class SwitchSACLearner(_ManyUpdates, SACTorchLearner):
    """Discrete SAC with twin critics and a learned temperature."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam for critics, policy and temperature."""
        module, log_alpha = self.module[module_id].unwrapped(), log_temperature(self, module_id)
        critics = [*module.critic.parameters(), *module.twin.parameters()]
        self.register("critic", critics, config.critic_lr)
        self.register("policy", list(module.net.parameters()), config.actor_lr)
        self.register("alpha", [log_alpha], config.alpha_lr)

    def one(self, module: Any, batch: Batch) -> None:
        """One update."""
        log_alpha = log_temperature(self, DEFAULT_MODULE_ID)
        critic_loss, policy_loss, alpha_loss = sac_losses(
            module.net,
            (module.critic, module.twin),
            (module.critic_target, module.twin_target),
            log_alpha,
            batch,
            self.config.gamma,
            target_entropy(self, DEFAULT_MODULE_ID),
        )
        critics = [*module.critic.parameters(), *module.twin.parameters()]
        self.descend("critic", critic_loss, critics)
        self.descend("policy", policy_loss, list(module.net.parameters()))
        self.descend("alpha", alpha_loss, [log_alpha])
