"""Our updates against RLlib's own losses, the modules around them, and the replay buffer."""

import importlib
from types import SimpleNamespace
from unittest.mock import MagicMock

import gymnasium as gym
import numpy as np
import pytest
import torch

from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.updates import DISCOUNTS, dqn_loss, sac_losses

GAMMA, WIDTH = 0.9, 6


def networks(count, models, budgeted, seed=0):
    torch.manual_seed(seed)
    return [SwitchNetwork(WIDTH, [16], models, budgeted) for _ in range(count)]


def batch(models, masked, size=64, several=False):
    """Random transitions; ``several``: of one to four steps each, as RLlib and as we say it."""
    torch.manual_seed(1)
    obs, following = torch.rand(size, WIDTH) + 0.1, torch.rand(size, WIDTH) + 0.1
    if masked:
        obs[::4, -2] = following[::3, -2] = 0.0
    made = {
        "obs": obs,
        "new_obs": following,
        "actions": torch.randint(models, (size,)),
        "rewards": torch.randn(size),
        "terminateds": torch.rand(size) < 0.3,
        "weights": torch.ones(size),
        "n_step": torch.ones(size),
    }
    if several:
        made["n_step"] = torch.randint(1, 5, (size,)).float()
        made[DISCOUNTS] = GAMMA ** made["n_step"]
    return made


def gradients(loss, *nets):
    parameters = [p for net in nets for p in net.parameters()]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def same(first, second):
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize(("masked", "several"), [(False, False), (True, False), (True, True)])
def test_dqn_loss_is_rllibs(models, masked, several):
    from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner

    net, target = networks(2, models, masked)
    drawn = batch(models, masked, several=several)
    config = SimpleNamespace(double_q=True, num_atoms=1, gamma=GAMMA, td_error_loss_fn="huber")
    theirs = DQNTorchLearner.compute_loss_for_module(
        SimpleNamespace(metrics=MagicMock()),
        module_id="m",
        config=config,
        batch=drawn,
        fwd_out={
            "qf_preds": net(drawn["obs"]),
            "qf_next_preds": net(drawn["new_obs"]),
            "qf_target_next_preds": target(drawn["new_obs"]),
        },
    )
    ours = dqn_loss(net, target, drawn, GAMMA)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.isfinite(ours)
    same(gradients(ours, net), gradients(theirs, net))


@pytest.mark.parametrize(("models", "several"), [(2, False), (3, False), (3, True)])
def test_sac_losses_are_rllibs(models, several):
    from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner

    pi, critic, twin, critic_target, twin_target = networks(5, models, False)
    drawn = batch(models, False, several=several)
    log_alpha = torch.tensor([-1.0], requires_grad=True)
    learner = SimpleNamespace(
        metrics=MagicMock(), curr_log_alpha={"m": log_alpha}, target_entropy={"m": 0.1}, _temp_losses={}
    )
    probs, following = pi(drawn["obs"]).softmax(-1), pi(drawn["new_obs"]).softmax(-1)
    SACTorchLearner._compute_loss_for_module_discrete(
        learner,
        module_id="m",
        config=SimpleNamespace(gamma=GAMMA, twin_q=True),
        batch=drawn,
        fwd_out={
            "action_probs": probs,
            "action_log_probs": probs.log(),
            "action_probs_next": following,
            "action_log_probs_next": following.log(),
            "qf_preds": critic(drawn["obs"]),
            "qf_twin_preds": twin(drawn["obs"]),
            "q_target_next": torch.minimum(critic_target(drawn["new_obs"]), twin_target(drawn["new_obs"])),
        },
    )
    theirs = {name: loss for (_, name), loss in learner._temp_losses.items()}
    ours = sac_losses(pi, (critic, twin), (critic_target, twin_target), log_alpha, drawn, GAMMA, 0.1)
    critics = theirs["qf_loss"] + theirs["qf_twin_loss"]
    for mine, rllibs, nets in zip(
        ours, (critics, theirs["policy_loss"], theirs["alpha_loss"]), ([critic, twin], [pi], []), strict=True
    ):
        assert mine.item() == pytest.approx(rllibs.item(), rel=1e-5)
        if nets:
            same(gradients(mine, *nets), gradients(rllibs, *nets))
    assert torch.autograd.grad(ours[2], log_alpha)[0].item() == pytest.approx(
        torch.autograd.grad(theirs["alpha_loss"], log_alpha)[0].item(), rel=1e-5
    )


def test_sac_losses_leave_masked_calls_out():
    """Where a call is masked the policy has one choice: no entropy, and the state is worth what QUICK's step is."""
    pi, critic, twin, critic_target, twin_target = networks(5, 2, True)
    drawn, log_alpha = batch(2, True), torch.tensor([-1.0], requires_grad=True)
    drawn["new_obs"][:, -2] = 0.0
    critic_loss, policy_loss, alpha_loss = sac_losses(
        pi, (critic, twin), (critic_target, twin_target), log_alpha, drawn, GAMMA, 0.1
    )
    quick = torch.minimum(critic_target(drawn["new_obs"])[:, 0], twin_target(drawn["new_obs"])[:, 0])
    aim = (drawn["rewards"] + GAMMA * ~drawn["terminateds"] * quick).detach()
    expected = 0.0
    for net in (critic, twin):
        q = net(drawn["obs"])[torch.arange(64), drawn["actions"]].nan_to_num(neginf=0.0)
        expected += torch.nn.functional.huber_loss(q, aim)
    assert critic_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for loss, net in ((policy_loss, pi), (critic_loss, critic)):
        assert all(torch.isfinite(g).all() for g in gradients(loss, net))
    assert torch.isfinite(alpha_loss)


def module(kind, models=2, budgeted=True, epsilon=1.0):
    from atlas_ray.switching import module as modules

    made = getattr(modules, kind)(
        observation_space=gym.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32),
        action_space=gym.spaces.Discrete(models),
        model_config={"hidden": [16], "budget": 3 if budgeted else None, "epsilon": epsilon},
    )
    made.make_target_networks()
    return made


@pytest.mark.parametrize("kind", ["DQNModule", "SACModule"])
@pytest.mark.parametrize("models", [2, 3])
def test_no_exploration_picks_a_masked_call(kind, models):
    obs = torch.rand(2000, WIDTH) + 0.1
    obs[::2, -2] = 0.0
    for epsilon in (0.0, 1.0):
        made = module(kind, models, epsilon=epsilon)
        for share in (0.0, 0.5):
            obs[:, -1] = share
            actions = made.forward_exploration({"obs": obs}, t=0)["actions"]
            assert not actions[::2].any()
            if epsilon:
                assert set(actions[1::2].tolist()) == set(range(models))
        assert not made.forward_inference({"obs": obs})["actions"][::2].any()
    free = module(kind, models, budgeted=False)
    assert free.forward_exploration({"obs": obs}, t=0)["actions"][::2].any()


@pytest.mark.parametrize("kind", ["DQNModule", "SACModule"])
def test_saved_policy_decides_as_the_module(kind, tmp_path):
    torch.manual_seed(0)
    made = module(kind, models=3)
    torch.nn.init.zeros_(made.net.layers[-1].bias)
    tensors = {name: tensor.numpy() for name, tensor in made.net.state_dict().items()}
    policy = SwitchPolicy(SwitchConfig(WIDTH - 2, (16,), models=3, budget=3), tensors)
    policy.save(tmp_path / "switch")
    loaded = SwitchPolicy.load(tmp_path / "switch")
    obs = 5 * torch.randn(500, WIDTH)
    obs[::3, -2] = 0.0
    expected = made.forward_inference({"obs": obs})["actions"].tolist()
    assert loaded.greedy(obs.numpy()) == policy.greedy(obs.numpy()) == expected
    assert set(expected) == {0, 1, 2}


def test_network_is_dueling_and_masks_with_minus_infinity():
    network = SwitchNetwork(5, [8], 2, budgeted=True)
    features = torch.rand(3, 5) + 0.1
    features[0, -2] = 0
    q = network(features)
    assert q[0, 1] == -torch.inf
    assert torch.isfinite(q[1:]).all()


def episode(length, done=True, first=0.0):
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    observations = [np.array([first + i, 0.5], np.float32) for i in range(length + 1)]
    return SingleAgentEpisode(
        observations=observations,
        actions=[i % 2 for i in range(length)],
        rewards=[1.0] * length,
        terminated=done,
        infos=[{} for _ in observations],
        len_lookback_buffer=0,
    )


def test_replay_keeps_the_last_transitions_and_charges_what_is_drawn():
    from atlas_ray.switching.replay_buffer import TransitionBuffer

    buffer = TransitionBuffer(10, 2, seed=0)
    buffer.add([episode(6), episode(6, first=100.0, done=False)])
    assert (len(buffer), buffer.count, buffer.ended) == (10, 12, 1)
    drawn = buffer.sample(2000)
    assert set(drawn["obs"][:, 0]) == {2, 3, 4, 5, *range(100, 106)}
    assert (drawn["new_obs"][:, 0] == drawn["obs"][:, 0] + 1).all()
    assert set(drawn["obs"][drawn["terminateds"], 0]) == {5}
    assert set(drawn["rewards"]) == {1.0}
    buffer.charge = np.array([0.0, 0.25], np.float32)
    drawn = buffer.sample(100)
    assert (drawn["rewards"] == 1 - 0.25 * drawn["actions"]).all()


@pytest.mark.parametrize("transitions", [True, False])
def test_replay_goes_on_from_its_state(transitions):
    from atlas_ray.switching.replay_buffer import TransitionBuffer

    first, second = TransitionBuffer(10, 2, seed=0), TransitionBuffer(10, 2, seed=5)
    first.add([episode(7)])
    first.sample(3)
    second.set_state(first.get_state(transitions))
    assert (second.count, second.ended) == (7, 1)
    assert len(second) == (7 if transitions else 0)
    for buffer in (first, second):
        buffer.add([episode(5, first=50.0)])
    if transitions:
        assert first.sample(20)["obs"].tolist() == second.sample(20)["obs"].tolist()
    else:
        assert set(second.sample(200)["obs"][:, 0]) == set(range(50, 55))


@pytest.mark.parametrize(
    "name",
    [
        *("algorithm.SwitchDQN", "algorithm.SwitchSAC", "algorithm.SwitchRunner"),
        *("learner.SwitchDQNLearner", "learner.SwitchSACLearner", "module.DQNModule", "module.SACModule"),
    ],
)
def test_classes_are_found_where_training_states_look_for_them(name):
    """RLlib pickles these seven by module and name; a training begun by an older version goes on with them."""
    module, _, attribute = name.rpartition(".")
    assert isinstance(getattr(importlib.import_module(f"atlas_ray.switching.{module}"), attribute), type)
