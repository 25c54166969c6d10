"""Both ends at the beginning of a training, on roads where it is known at which seeds they differ."""

import numpy as np
import pytest
import signs_env

from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.errors import InputError
from atlas_ray.models.encoders import make_encoder
from atlas_ray.recipe.loading import Switch
from atlas_ray.rundir import files
from atlas_ray.switching.boundary import Repeating, Transitions, differing, play_boundary
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.players import ExpertPlayer
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.replay_buffer import TransitionBuffer
from atlas_ray.switching.text_game import TextGame
from atlas_ray.switching.train import train_switch

WIDTH, ROWS = 32, 8


def make_env(first_seed, stride, budget=None, cost=0.05):
    players = [signs_env.AlwaysLeft(ROWS), ExpertPlayer(ROWS)]
    specs = [EnvSpec("signs_env:Signs/Roads-v0", {"split": "train"})]
    return SwitchingVectorEnv(
        TextGame(specs, players, ROWS, make_encoder("hashing", WIDTH)), first_seed, budget, cost, stride=stride
    )


def test_both_ends_play_the_same_seeds_and_differ_where_a_sign_is_red():
    played = play_boundary(make_env(0, 1), range(20))
    assert [(p.seed, p.model) for p in played] == [(s, m) for m in (0, 1) for s in range(20)]
    assert differing(played) == tuple(range(1, 20, 2)), "odd roads are hard"
    for p in played:
        hard = p.seed % 2
        steps = 3 * signs_env.JUNCTIONS if hard and not p.model else signs_env.JUNCTIONS
        assert p.observations.shape == (steps + 1, WIDTH + 2) and len(p.rewards) == steps
        assert p.terminated and p.success == (not hard or bool(p.model))
        assert p.rewards == pytest.approx([-0.05 * p.model] * (steps - 1) + [p.success - 0.05 * p.model])
        assert (p.observations[:, -2] == 1).all() and p.observations[0, -1] == 0 < p.observations[-1, -1]
    # a budget is of the switch, and neither end is one
    assert [len(p.rewards) for p in play_boundary(make_env(0, 1, budget=1), range(20))] == [
        len(p.rewards) for p in played
    ]


def test_what_was_lost_says_nothing():
    def end(seed, model, success):
        return Transitions(seed, model, np.zeros((1, 2), np.float32), [], False, success)

    played = [
        end(s, m, w) for s, *won in ((1, True, False), (2, None, True), (3, True, True)) for m, w in enumerate(won)
    ]
    assert differing(played) == (1,)


def test_episodes_of_the_seeds_that_differ_come_more_often():
    env = Repeating(make_env, (101, 103), 0.5)(0, 1)
    begun, begin = [], env.game.begin
    env.game.begin = lambda row, seed: begun.append(seed) or begin(row, seed)
    for _ in range(30):
        env.reset()
    others = [seed for n, seed in enumerate(begun) if seed != n]
    assert len(begun) == 30 * ROWS and 90 < len(others) < 150 and set(others) == {101, 103}
    again = Repeating(make_env, (101, 103), 0.5)(0, 1)
    again.reset()
    assert [e.seed for e in again.game.episodes.values()] == begun[:ROWS], "the same in every start"
    plain = Repeating(make_env, (), 0.5)(0, 1)
    plain.reset()
    assert [e.seed for e in plain.game.episodes.values()] == list(range(ROWS))


def test_the_buffer_holds_their_steps_one_by_one():
    played = play_boundary(make_env(0, 1), range(4))
    buffer = TransitionBuffer(1000, WIDTH + 2, seed=0)
    for p in played:
        buffer.add_arrays(p.observations, np.full(len(p.rewards), p.model), p.rewards, p.terminated)
    assert (len(buffer), buffer.ended) == (sum(len(p.rewards) for p in played), 0)
    state = buffer.get_state()["arrays"]
    start = len(played[0].rewards)
    assert state["obs"][start].tolist() == played[1].observations[0].tolist()
    assert state["new_obs"][start - 1].tolist() == played[0].observations[-1].tolist()
    assert state["terminateds"][:start].tolist() == [False] * (start - 1) + [True]


@pytest.mark.parametrize("budget", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_a_training_begins_with_both_ends_and_goes_on_after_them(ray_session, tmp_path, budget):
    settings = Switch(
        levels=["GoToLocal"], costs=[0.05], steps=800, num_envs=ROWS, evaluate_every=300, updates_per_step=0.05,
        boundary_episodes=10,
    )  # fmt: skip
    seeds, rows, kinds = [], [], []

    def make(first_seed, stride):
        env = make_env(first_seed, stride, budget)
        begin = env.game.begin
        env.game.begin = lambda row, seed: seeds.append(seed) or begin(row, seed)
        kinds.append(first_seed)
        return env

    def note(row):
        rows.append(row)
        if len(rows) == 1:
            raise KeyboardInterrupt

    terms = SwitchConfig(WIDTH, (128, 64), budget=budget, cost=None if budget else 0.05)

    def train():
        return train_switch(
            tmp_path / "s", settings, terms, make, lambda p: {"objective": 0.0}, 1000, on_evaluation=note
        )

    with pytest.raises(KeyboardInterrupt):
        train()
    both = list(range(1000, 1010))
    assert seeds[:20] == both * 2 and kinds[:2] == [1000, 1010]
    hard = set(range(1001, 1010, 2))
    trained = set(seeds[20:])
    assert trained & hard and min(trained - hard) >= 1010
    del seeds[:]
    train()
    assert set(seeds) & hard and not set(seeds) & set(range(1000, 1010, 2)), "neither end is played again"
    with pytest.raises(InputError, match="steps of these episodes") as error:
        train_switch(tmp_path / "few", settings.model_copy(update={"steps": 100}), terms, make, lambda p: {}, 1000)
    assert error.value.field == "switch.boundary_episodes"
    assert rows[-1]["step"] >= 800 and files.read_json(tmp_path / "s" / "chosen.json")["step"] == rows[-1]["step"]
