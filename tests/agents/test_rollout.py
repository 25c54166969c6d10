"""Episodes side by side, settings and splits on their way to the environments, and episodes that are lost."""

import json

import dying_env
import pytest

from atlas_ray import envs
from atlas_ray.agents import rollout as rollout_module
from atlas_ray.agents.rollout import EnvSpec, env_spec, rollout, start_episode
from atlas_ray.agents.token_agent import Decision
from atlas_ray.engines.base import EngineCounters
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.recipe.loading import Recipe, load
from atlas_ray.selection.replays import ReplayError, ReplayState, checkpoint_states
from atlas_ray.selection.value import ValueConfig, estimate_values
from atlas_ray.stages.collect import collect
from atlas_ray.stages.evaluate import Outcomes, _score, evaluate
from atlas_ray.switching.players import ExpertPlayer
from atlas_ray.switching.text_game import TextGame

NAME = "dying_env:Dying/Doors-v0"
SPEC = EnvSpec(NAME)


@pytest.fixture(autouse=True)
def _alive():
    dying_env.DEATHS.clear()
    yield
    dying_env.DEATHS.clear()


class Fixed:
    """An agent that always does the first thing offered."""

    needs_list = True

    def __init__(self, slots):
        self.tally = {}
        self.engine = type(
            "Engine",
            (),
            {
                "slots": slots,
                "computed_tokens": [0] * slots,
                "parameters": 1,
                "counters": EngineCounters(),
                "forget": lambda self, s: None,
                "close": lambda self: None,
            },
        )()

    def start(self, *_):
        pass

    def advance(self, *_):
        pass

    def fits(self, _):
        return True

    def act(self, slots, offered, seeds):
        return [Decision(None, actions[0]) for actions in offered]


def test_a_lost_episode_is_marked_and_does_not_end_the_others():
    dying_env.DEATHS[1] = 1
    finished = list(rollout(Fixed(3), ([start_episode(SPEC, s)] for s in range(6))))
    assert len(finished) == 6
    lost = [f for f in finished if f.lost]
    assert [f.start.id for f in lost] == [f"{NAME}/1"]
    assert "EnvironmentDiedError: the process is gone" in lost[0].error
    assert len(lost[0].steps) == 1
    assert all(f.success and f.error is None for f in finished if not f.lost)


def test_an_environment_that_cannot_say_what_is_admissible_is_lost_too(monkeypatch):
    def broken(self):
        if self.variation == 2:
            raise envs.EnvironmentDiedError("gone")
        return ["turn left"]

    monkeypatch.setattr(dying_env.Doors, "admissible", broken)
    finished = list(rollout(Fixed(2), ([start_episode(SPEC, s)] for s in range(4))))
    assert sorted(f.start.id[-1] for f in finished if f.lost) == ["2"]
    assert sum(f.success for f in finished) == 3


def test_an_environment_that_does_not_start_is_tried_three_times(monkeypatch):
    tries = []

    def begin(self, variation):
        tries.append(variation)
        raise envs.EnvironmentDiedError("no")

    monkeypatch.setattr(dying_env.Doors, "begin", begin)
    with pytest.raises(envs.EnvironmentDiedError):
        start_episode(SPEC, 4)
    assert tries == [4, 4, 4]


def recipe(**more):
    return Recipe.model_validate({"name": "x", "workers": 0, "num_envs": 4, **more})


def test_the_expert_plays_a_lost_episode_again_and_every_loss_is_counted(tmp_path):
    dying_env.DEATHS |= {0: 1, 3: 2}
    made = collect(recipe(collect={"levels": {NAME: 5}}), tmp_path)
    assert [(t.seed, len(t.steps), t.success) for t in made] == [(s, s % 3 + 2, True) for s in range(5)]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sorted(e["seed"] for e in events if e["event"] == "lost episode") == [0, 3, 3]


def test_an_episode_lost_thrice_is_dropped_and_another_takes_its_place(tmp_path):
    dying_env.DEATHS[2] = 3
    made = collect(recipe(collect={"levels": {NAME: 5}}), tmp_path)
    assert [t.seed for t in made] == [0, 1, 3, 4, 5]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["why"] for e in events if e["event"] == "dropped"] == ["lost 3 times: the process is gone"]


def test_collecting_more_than_can_be_had_ends_with_an_error(tmp_path):
    for seed in range(20):
        dying_env.DEATHS[seed] = 99 if seed > 9 else 0
    with pytest.raises(AtlasError, match="the expert solved 10 of 20 episodes"):
        collect(recipe(collect={"levels": {NAME: 11}}), tmp_path)


def scored(tmp_path, monkeypatch, episodes=20):
    """Evaluate one base model that always turns left; rows of the episode file and the table."""
    made = recipe(
        collect={"levels": {NAME: 5}},
        select={"selectors": ["all"]},
        finetune={"arms": [{"selector": "all"}]},
        evaluate={"held_in": [NAME], "episodes": episodes},
    )
    monkeypatch.setattr("atlas_ray.agents.spec.AgentSpec.agent", lambda self, state: Fixed(4))
    about = {"selector": "all", "anchor": 0.0, "seed": 0, "steps": 1, "best": None, "examples": 1, "trajectories": 1}
    about |= {"steps_share": 1.0, "trained_tokens": 1, "context_tokens": 1, "anchored_tokens": 0, "seconds": 1.0}
    about |= {"data_sha256": "0"}
    monkeypatch.setattr("atlas_ray.stages.evaluate.read_json", lambda _: about)
    table = evaluate(made, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "episodes.jsonl").read_text().splitlines()]
    return rows, table


def test_scores_come_from_the_test_split_and_a_lost_episode_is_played_again(tmp_path, monkeypatch):
    dying_env.DEATHS |= {41: 1, 50: 2}
    rows, table = scored(tmp_path, monkeypatch)
    assert len(rows) == 40
    assert len({(r["model"], r["seed"]) for r in rows}) == 40
    assert sorted(r["attempts"] for r in rows)[-3:] == [1, 2, 3]
    assert all(arm.held_in.success == 1.0 and arm.held_in.episodes == 20 for arm in table.arms)


def test_what_stays_lost_is_left_out_of_the_scores_and_counted(tmp_path, monkeypatch, capsys):
    dying_env.DEATHS[45] = 3
    rows, table = scored(tmp_path, monkeypatch)
    assert [r["seed"] % 20 + 40 for r in rows if r["lost"]] == [45]
    assert {arm.selector: arm.held_in.episodes for arm in table.arms} == {"none": 19, "all": 20}
    assert all(arm.held_in.success == 1.0 for arm in table.arms), "lost is no failure"
    assert "1 episodes were lost" in capsys.readouterr().out
    events = (tmp_path / "events.jsonl").read_text()
    assert '"dropped": true' in events


def test_an_environment_with_fewer_episodes_is_scored_on_those_and_says_so(tmp_path, monkeypatch, capsys):
    rows, table = scored(tmp_path, monkeypatch, episodes=50)
    assert len(rows) == 40
    assert table.arms[0].held_in.episodes == 20
    assert "has 20 test episodes, 50 are asked for" in capsys.readouterr().out


def test_when_everything_is_lost_there_is_no_score():
    ends = Outcomes(1, 1)
    ends.note({"model": "none", "level": "a", "seed": 1, "success": False, "lost": True})
    with pytest.raises(AtlasError, match="every one was lost"):
        _score(ends, ["none"], {"a": [1]})


def test_values_come_from_roll_outs_that_were_not_lost(tmp_path):
    (made,) = collect(recipe(collect={"levels": {NAME: 1}}), tmp_path)
    config = ValueConfig(rollouts=2, horizon=10, specs={NAME: EnvSpec(NAME, {"split": "train"})})
    whole, problems, _ = estimate_values(Fixed(2), [made], config)
    assert (whole, problems) == ({made.id: [1.0, 1.0, 0.0]}, [])

    class Deadly(Fixed):
        deaths = 1

        def act(self, slots, offered, seeds):
            dying_env.DEATHS[0], self.deaths = dying_env.DEATHS.get(0, 0) + self.deaths, 0
            return super().act(slots, offered, seeds)

    values, problems, _ = estimate_values(Deadly(2), [made], config)
    assert values == whole, "the mean of what is left, not half of it"
    assert len(problems) == 1
    killer = Deadly(2)
    killer.deaths = 3
    values, problems, _ = estimate_values(killer, [made], config)
    assert values == {}, "no roll-out from a state is left, so the trajectory has no value"
    assert "every roll-out from a state was lost" in problems[-1]


def test_a_trajectory_whose_replay_dies_has_no_value_and_says_so(tmp_path):
    (made,) = collect(recipe(collect={"levels": {NAME: 1}}), tmp_path)
    dying_env.DEATHS[0] = 1
    config = ValueConfig(rollouts=1, horizon=10, specs={NAME: EnvSpec(NAME, {"split": "train"})})
    assert estimate_values(Fixed(1), [made], config)[:2] == ({}, ["the process is gone"])


def test_a_trajectory_of_another_environment_has_no_value_and_says_so(tmp_path):
    (made,) = collect(recipe(collect={"levels": {NAME: 1}}), tmp_path)
    values, problems, _ = estimate_values(Fixed(1), [made], ValueConfig(1, 5, {}))
    assert values == {}
    assert "the recipe collects nothing from" in problems[0]


def test_states_of_an_environment_that_cannot_be_copied_are_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(dying_env.Doors, "cheap_clone", False)
    (made,) = [t for t in collect(recipe(collect={"levels": {NAME: 3}}), tmp_path) if t.seed == 2]
    spec = EnvSpec(NAME, {"split": "train"})
    states = checkpoint_states(made, spec)
    assert all(isinstance(s, ReplayState) for s in states)
    for index, state in enumerate(states):
        dying_env.DEATHS[2] = int(index > 1)
        env = state.clone()
        assert env.turned == index
        assert env.step("turn left")[0] == f"room 2, turned {index + 1}"
    with pytest.raises(ReplayError, match="step 1"):
        checkpoint_states(made.model_copy(update={"steps": (made.steps[0], *made.steps[2:])}), spec)


def test_the_switch_replays_an_episode_whose_environment_died():
    def play_out(deaths):
        dying_env.DEATHS.clear()
        dying_env.DEATHS.update(deaths)
        game = TextGame([SPEC], [ExpertPlayer(2), ExpertPlayer(2)], 2)
        game.begin(0, 2)
        seen = []
        while True:
            outcome = game.advance({0: False})[0]
            seen.append((game.episodes[0].observation, outcome))
            if outcome.over:
                return seen, game.episodes[0].deaths

    whole, none = play_out({})
    again, deaths = play_out({2: 2})
    assert again == whole
    assert (none, deaths) == (0, 2)
    with pytest.raises(envs.EnvironmentDiedError):
        play_out({2: 3})


def test_several_finite_environments_in_turn_skip_no_episode():
    game = TextGame([SPEC, EnvSpec("GoToLocal")], [ExpertPlayer(4), ExpertPlayer(4)], 4)
    for row, seed in enumerate((0, 2, 4, 6)):
        game.begin(row, seed)
    assert [game.episodes[r].env.variation for r in range(4)] == [0, 1, 2, 3]


def test_settings_and_splits_reach_the_environment(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'name = "x"\n[environments."ScienceWorld/boil-v0"]\nsimplifications = "easy"\n'
        '[collect]\nlevels = { "ScienceWorld/boil" = 3, "GoToLocal" = 2 }\n'
    )
    made = load(path)
    assert env_spec(made, "ScienceWorld/boil", 50, "dev") == EnvSpec(
        "ScienceWorld/boil", {"simplifications": "easy", "max_steps": 50, "split": "dev"}
    )
    assert env_spec(made, "GoToLocal", None, "test") == EnvSpec("GoToLocal", {}), "unbounded: the seeds keep it apart"
    for text, words in (
        ('[environments."ScienceWorld/boil"]\nsimplification = "easy"\n', "no setting 'simplification'; it takes"),
        ('[environments."GoToLocal"]\nmax_steps = 3\n', "no setting 'max_steps'; it takes none"),
        ('[environments."ScienceWorld/boi"]\n', "did you mean boil"),
        ('[environments."ScienceWorld/boil"]\n[environments."ScienceWorld/boil-v0"]\n', "are the same environment"),
        ("[collect]\n", "give either levels to play or a file"),
        ('[collect]\nfile = "x"\nlevels = { GoToLocal = 1 }\n', "give either levels to play or a file"),
    ):
        path.write_text(f'name = "x"\n{text}')
        with pytest.raises(InputError, match=words):
            load(path)


def test_names_that_the_documents_had_before_still_work():
    for old, new in (("play", "rollout"), ("fresh", "start_episode")):
        with pytest.warns(DeprecationWarning, match=new):
            assert getattr(rollout_module, old) is getattr(rollout_module, new)
    with pytest.raises(AttributeError):
        rollout_module.never
