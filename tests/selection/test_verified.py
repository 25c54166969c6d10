"""Verified steps on bridges of which one breaks: what is verified, by how much, what is lost, killed or left out."""

import json
import random

import pytest
from bridges_env import COUNT, DEATHS, LIMIT, Bridges, fatal
from chat_server import ChatServer
from scipy.stats import fisher_exact

from atlas_ray import pipeline
from atlas_ray.agents.rollout import decision_seed
from atlas_ray.agents.token_agent import Decision, LostAnswer
from atlas_ray.cluster import result_file
from atlas_ray.cluster.resources import resource_requests
from atlas_ray.data.pairs import read_pairs
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.selection.reply_counts import replies_of
from atlas_ray.selection.stage import select
from atlas_ray.selection.verified import Criterion, Evidence, chance_of, proposed_steps
from atlas_ray.stages.paths import check_inputs
from atlas_ray.stages.table import models
from atlas_ray.trajectory import Annotation, Step, Trajectory, read_annotations, write_annotations, write_trajectories
from tests.agents.test_rollout import Fixed

BRIDGES = "bridges_env:Bridges/Bridges-v0"
LEFT = {"tiny-quick": 1.0, "tiny-deepthink": 0.0}
"""How likely each model is to keep left."""
SAME_AT = "bridge 1"
"""Where tiny-deepthink keeps left, too."""
LOST: set[str] = set()
"""Observations at which a model gives no answer."""


class Walker(Fixed):
    """Keeps left as likely as its name says, by the seed of the decision."""

    def __init__(self, name):
        super().__init__(4)
        self.name, self.seen = name, {}

    def start(self, slot, instruction, steps, observation):
        self.seen[slot] = observation

    def advance(self, slot, step, observation):
        self.seen[slot] = observation

    def act(self, slots, offered, seeds):
        return [self.decide(self.seen[s], seed) for s, seed in zip(slots, seeds, strict=True)]

    def decide(self, observation, seed):
        if observation in LOST:
            return LostAnswer("no", replies={"lost": 1})
        if self.name == "tiny-deepthink" and observation.startswith(SAME_AT):
            return Decision("as ever", "left", replies={"ok": 1})
        return Decision("on", "left" if goes_left(self.name, seed) else "right", replies={"ok": 1})


def goes_left(name, seed):
    return random.Random(seed).random() < LEFT[name]


@pytest.fixture(autouse=True)
def _walkers(monkeypatch):
    LOST.clear()
    DEATHS.clear()
    LEFT.update({"tiny-quick": 1.0, "tiny-deepthink": 0.0})
    made = {}
    monkeypatch.setattr(
        "atlas_ray.agents.spec.AgentSpec.agent", lambda self, state: made.setdefault(self.model, Walker(self.model))
    )


def recipe(selectors=("verified",), collect=None, files=None, **verified):
    own = {"levels": {BRIDGES: 8}, "agent": {"model": "tiny-quick", "temperature": 1.0}}
    verify = {"most_steps": LIMIT, **verified}
    select = {"selectors": list(selectors), "verified": verify, "files": files or {}}
    given = {"name": "x", "workers": 0, "max_lost_answers": 1.0, "collect": collect or own, "select": select}
    return Recipe.model_validate(given)


def failed(variation, actions=("left",) * LIMIT, success=False):
    """An episode of these actions."""
    env, steps = Bridges("Bridges-v0"), []
    shown, _ = env.reset(seed=variation)
    for action in actions:
        following, reward, over, cut, info = env.step(action)
        steps.append(Step(observation=shown, action=action, reward=reward))
        shown = following
        if over or cut:
            break
    about = {"env": BRIDGES, "task": "Bridges-v0", "seed": variation, "instruction": "cross the bridges"}
    score = None if success is None else float(info["success"])
    return Trajectory(id=f"b{variation}", steps=tuple(steps), score=score, success=success, source="quick", **about)


def run(made, run_dir, trajectories=None):
    trajectories = trajectories or [failed(v) for v in range(8)]
    write_trajectories(run_dir / "trajectories" / "expert.jsonl", trajectories)
    select(made, run_dir)
    return read(run_dir, trajectories)


def read(run_dir, trajectories):
    annotated = read_annotations(run_dir / "annotations" / "verified.jsonl", trajectories)
    return {a.trajectory_id: a for a in annotated}, read_pairs(run_dir / "pairs" / "verified.jsonl")


def told(run_dir):
    *_, last = (row for row in recover_jsonl(run_dir / "metrics.jsonl") if "replayed_steps" in row)
    return last


def rows_of(run_dir):
    return list(recover_jsonl(run_dir / "annotations" / "scores" / "verified.jsonl"))


def test_of_an_agent_that_falls_for_sure_the_fatal_step_alone_is_verified_whatever_came_after(tmp_path):
    annotated, pairs = run(recipe(), tmp_path)
    assert {name: a.critical for name, a in annotated.items()} == {f"b{v}": (fatal(v),) for v in range(8)}
    why = "expert would right: 5 of 5 succeed, and 0 of 5 after left (p = 0.004)"
    assert annotated["b2"].reasons == {2: why} and annotated["b2"].model == "expert"
    assert [(p.episode, p.step, p.chosen.action, p.rejected.action) for p in pairs] == [
        (f"b{v}", fatal(v), "right", "left") for v in range(8)
    ]
    pair = pairs[2]
    assert (pair.chosen.thought, pair.chosen.actor, pair.history) == ("keep right", "expert", failed(2).steps[:2])
    assert pair.observation == "bridge 2 of 2" and pair.evidence["p"] == pytest.approx(1 / 252)
    assert (pair.evidence["chosen_successes"], pair.evidence["rejected_successes"]) == (5, 0)
    numbers = told(tmp_path)
    assert (numbers["tried"], numbers["verified"], numbers["same"], numbers["lost"]) == (8 * LIMIT, 8, 0, 0)


def simulated(variation, step, side, number):
    """How a roll-out ends, and its steps, by a loop of our own."""
    at, fallen, steps = 0, False, 0
    name = f"b{variation}@{step}#{side}/{number}"
    for t in range(LIMIT):
        left = t < step or (
            side == "agent" if t == step else goes_left("tiny-quick", decision_seed(name, t - step - 1))
        )
        fallen |= at == fatal(variation) and left
        at += not fallen
        steps += t >= step
        if at == COUNT:
            return True, steps
    return False, steps


@pytest.mark.parametrize("cheap", [True, False])
def test_every_roll_out_is_the_agents_own_draw_and_what_luck_explains_is_not_verified(tmp_path, monkeypatch, cheap):
    monkeypatch.setattr(Bridges, "cheap_clone", cheap)
    LEFT["tiny-quick"] = 0.5
    annotated, _ = run(recipe(), tmp_path)
    played = {(r["id"], r["step"], r["side"], r["number"]): r for r in rows_of(tmp_path) if "step" in r}
    assert len(played) == 8 * LIMIT * 2 * 5
    for (name, step, side, number), row in played.items():
        assert (row["success"], row["steps"]) == simulated(int(name[1:]), step, side, number)
    by_luck = 0
    for v in range(8):
        wanted = []
        for step in range(LIMIT):
            won, own = (sum(simulated(v, step, s, n)[0] for n in range(5)) for s in ("alternative", "agent"))
            p = fisher_exact([[won, 5 - won], [own, 5 - own]], alternative="greater")[1]
            wanted += [step] if won >= 3 and p <= 0.05 else []
            by_luck += won > 0 and step != fatal(v) and step not in wanted
        assert annotated[f"b{v}"].critical == tuple(wanted)
    assert by_luck > 5, "failure turned into success there, as it did behind the agent's own action"
    numbers = told(tmp_path)
    assert numbers["rollout_steps"] == sum(r["steps"] for r in played.values())
    again = 0 if cheap else sum(step for _, step, _, _ in played)
    assert numbers["replayed_steps"] == 8 * LIMIT * 3 + again, "two replays and a look for its expert's moves"


def test_p_is_fishers_and_the_criterion_takes_what_it_says():
    for k in (1, 3, 5, 6):
        for a in range(k + 1):
            for b in range(k + 1):
                exact = fisher_exact([[a, k - a], [b, k - b]], alternative="greater")[1]
                assert chance_of(a, b, k) == pytest.approx(exact)
    holds = {(a, b) for a in range(6) for b in range(6) if Criterion(5, 3, 0.05).holds(Evidence(5, a, b))}
    assert holds == {(5, 0), (5, 1), (4, 0)}
    assert Criterion(5, 3, 0.1).holds(Evidence(5, 3, 0)) and not Criterion(5, 4, 0.1).holds(Evidence(5, 3, 0))


def test_where_a_model_does_the_same_there_is_no_pair_and_it_is_counted(tmp_path, capsys):
    annotated, pairs = run(recipe(alternative="tiny-deepthink"), tmp_path)
    assert {v for v in range(8) if not annotated[f"b{v}"].critical} == {1, 5}, "they fall where both keep left"
    assert {p.episode for p in pairs} == {f"b{v}" for v in range(8)} - {"b1", "b5"}
    assert {p.chosen.thought for p in pairs} == {"on"} and {p.chosen.actor for p in pairs} == {"tiny-deepthink"}
    numbers = told(tmp_path)
    same = sum(s.observation.startswith(SAME_AT) for v in range(8) for s in failed(v).steps)
    assert (numbers["same"], numbers["tried"], numbers["no_move"]) == (same, 8 * LIMIT - same, 0)
    assert f"at {same} of them tiny-deepthink does the same" in capsys.readouterr().out
    assert replies_of(tmp_path)["verified"]["ok"] == numbers["calls"] > 8 * LIMIT
    assert ("select.verified.alternative.model", "tiny-deepthink") in list(models(recipe(alternative="tiny-deepthink")))


def test_what_is_verified_nowhere_is_bad_input_and_nothing_is_played_again(tmp_path, monkeypatch):
    LEFT["tiny-quick"], wet = 0.0, [failed(v, ("left",) * (fatal(v) + 1)) for v in range(4)]
    after = [Annotation(trajectory_id=t.id, selector="mine", fraction=1.0, critical=(0,)) for t in wet[1:]]
    write_annotations(tmp_path / "mine.jsonl", after)
    made = recipe(("mine", "verified"), files={"mine": str(tmp_path / "mine.jsonl")}, propose="mine")
    with pytest.raises(InputError, match="selector verified marked no step in any of 4") as raised:
        run(made, tmp_path / "run", wet)
    assert raised.value.exit_code == 2 and not (tmp_path / "run" / "pairs").exists()
    rows = rows_of(tmp_path / "run")
    assert len([r for r in rows if "step" in r]) == 3 * 2 * 5, "one step of each that the proposer annotated"
    assert {r["success"] for r in rows if "step" in r} == {True}, "it keeps right from there, so its step did no harm"
    with pytest.raises(InputError, match="marked no step"):
        select(made, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows


def test_a_selection_that_is_killed_again_and_again_plays_no_roll_out_twice_and_ends_alike(tmp_path, monkeypatch):
    LEFT["tiny-quick"] = 0.7
    made, real = recipe(alternative="tiny-deepthink", rollouts=4, wins=2), result_file.append_jsonl
    run(made, tmp_path / "whole")
    lines = iter([1, 2, 5, 30, 31, 60])
    for many in lines:
        count = iter(range(many))
        with monkeypatch.context() as patch:

            def dying(path, rows, count=count):
                real(path, rows)
                if next(count, None) is None:
                    raise KeyboardInterrupt

            patch.setattr(result_file, "append_jsonl", dying)
            with pytest.raises(KeyboardInterrupt):
                run(made, tmp_path / "killed")
        with (tmp_path / "killed" / "annotations" / "scores" / "verified.jsonl").open("a") as file:
            file.write('{"cut')
    run(made, tmp_path / "killed")
    for name in ("annotations/verified.jsonl", "pairs/verified.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    first, second = ([{**r, "replayed": 0} for r in rows_of(tmp_path / name)] for name in ("whole", "killed"))
    assert sorted(first, key=json.dumps) == sorted(second, key=json.dumps)
    assert replies_of(tmp_path / "whole") == replies_of(tmp_path / "killed")
    same = ("tried", "verified", "rollout_steps", "calls")
    assert [told(tmp_path / "whole")[k] for k in same] == [told(tmp_path / "killed")[k] for k in same]


def test_a_roll_out_lost_to_its_environment_is_played_again_and_else_its_step_is_open_and_no_failure(tmp_path, capsys):
    whole, _ = run(recipe(), tmp_path / "whole")
    DEATHS[2, 2, "right"] = 3
    again, _ = run(recipe(), tmp_path / "again")
    assert again == whole and sum(r.get("lost", False) for r in rows_of(tmp_path / "again")) == 3
    DEATHS[2, 2, "right"] = 10**6
    capsys.readouterr()
    annotated, pairs = run(recipe(), tmp_path / "gone")
    assert annotated["b2"].critical == () and "b2" not in {p.episode for p in pairs}
    assert {n: a for n, a in annotated.items() if n != "b2"} == {n: a for n, a in whole.items() if n != "b2"}
    # two steps earlier nobody has fallen yet, and the agent keeps left: only the fatal step's roll-outs are lost
    assert told(tmp_path / "gone")["lost"] == 1 and "at 1 roll-outs were lost" in capsys.readouterr().out
    DEATHS.clear()
    (tmp_path / "gone" / "annotations" / "verified.jsonl").unlink()
    select(recipe(), tmp_path / "gone")
    for name in ("annotations/verified.jsonl", "pairs/verified.jsonl"):
        assert (tmp_path / "gone" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("alternative", ["expert", "tiny-deepthink"])
def test_what_the_agent_does_not_answer_is_no_failure_either(tmp_path, alternative):
    LOST.add("bridge 3 of 2")  # behind the fatal step of b2 and b6, which the agent gets to from its alternative alone
    annotated, _ = run(recipe(alternative=alternative), tmp_path)
    assert annotated["b2"].critical == () and annotated["b6"].critical == (2,)
    lost = [r for r in rows_of(tmp_path) if r.get("lost")]
    assert {(r["id"], r["step"], r["side"]) for r in lost} == {("b2", 2, "alternative")}
    assert told(tmp_path)["lost"] == 1 and replies_of(tmp_path)["verified"]["lost"] == 5


def test_what_cannot_be_replayed_or_has_no_known_outcome_is_left_out_and_counted(tmp_path, capsys):
    file = tmp_path / "theirs.jsonl"
    made = recipe(collect={"file": str(file)})
    fine, won = failed(0), failed(1, ("right",) * COUNT, True)
    wrong = failed(2).model_copy(update={"seed": 3})
    lie = failed(3, ("right",) * COUNT)
    unknown = failed(4, success=None)
    annotated, pairs = run(made, tmp_path / "run", [fine, won, wrong, lie, unknown])
    assert set(annotated) == {"b0"} and [p.id for p in pairs] == ["b0/0"]
    out = capsys.readouterr().out
    assert "1 of 5 episodes have an unknown outcome, left out" in out
    assert "2 of 3 trajectories could not be replayed, left out" in out
    why = {e["trajectory"]: e["why"] for e in recover_jsonl(tmp_path / "run" / "events.jsonl") if "trajectory" in e}
    assert "another observation" in why["b2"] and "a success" in why["b3"]
    assert told(tmp_path / "run")["failures"] == 3
    for number, (all_of_them, said) in enumerate(
        {
            (wrong, lie): "none of 2 trajectories can be replayed",
            (won, unknown): "1 success, 1 of unknown outcome",
        }.items()
    ):
        with pytest.raises(InputError, match=said) as raised:
            run(made, tmp_path / str(number), list(all_of_them))
        assert raised.value.exit_code == 2 and str(raised.value).startswith(f"{file}: ")
        assert "\n" not in str(raised.value)


def test_a_dead_environment_is_no_bad_input(tmp_path):
    fallen = [failed(2)]
    DEATHS[2, 0, "left"] = 10**6
    with pytest.raises(AtlasError, match="none of 1 .*the process is gone") as raised:
        run(recipe(), tmp_path, fallen)
    assert raised.value.exit_code == 1 and not isinstance(raised.value, InputError)


def test_proposals_are_marks_or_mistakes_and_of_too_many_a_draw_that_depends_on_the_seed_alone():
    t = failed(0)
    marks = Annotation(trajectory_id="b0", selector="entropy", fraction=0.5, critical=(1, 4, 6))
    assert proposed_steps(t, marks, 5, 0) == (1, 4, 6) and proposed_steps(t, None, 9, 0) == tuple(range(LIMIT))
    labels = {0: "good", 1: "mistake", 2: "unnecessary", 3: "recovery", 4: "mistake", 5: "good", 6: "good"}
    judged = marks.model_copy(update={"selector": "mistakes", "critical": (0, 3, 5, 6), "categories": labels})
    assert proposed_steps(t, judged, 5, 0) == (1, 4)
    spotless = judged.model_copy(update={"categories": dict.fromkeys(range(7), "good")})
    assert proposed_steps(t, spotless, 5, 0) == ()
    drawn = {seed: proposed_steps(t, None, 3, seed) for seed in range(20)}
    assert drawn == {seed: proposed_steps(t, None, 3, seed) for seed in range(20)} and len(set(drawn.values())) > 5
    assert all(len(set(each)) == 3 and list(each) == sorted(each) for each in drawn.values())
    silent = t.model_copy(update={"steps": (Step(observation="o", action=" "), *t.steps[1:])})
    assert 0 not in proposed_steps(silent, None, 9, 0)


def test_what_cannot_verify_is_refused_with_its_field():
    for verified, said in {
        (("rollouts", 2), ("wins", 2)): "2 successes against none have p = 0.167",
        (("wins", 6),): "6 of 5 roll-outs cannot succeed",
        (("propose", "value"),): "selectors lacks value",
        (("propose", "verified"),): "cannot propose the steps of verified itself",
        (("agent", "expert"),): "the environment's expert is for alternative",
    }.items():
        with pytest.raises(ValueError, match=said):
            recipe(**dict(verified))
    learnt = {"arms": [{"selector": "verified"}], "base": "tiny-quick"}
    with pytest.raises(ValueError, match=r"arms\.0\.selector: .* train on its pairs"):
        Recipe.model_validate(recipe().model_dump() | {"finetune": learnt})
    around = {"selectors": ["verified", "non-critical"], "rest_of": "verified", "verified": {"propose": "non-critical"}}
    with pytest.raises(ValueError, match="verified itself"):
        Recipe.model_validate({"name": "x", "collect": {"levels": {BRIDGES: 1}, "agent": "a"}, "select": around})
    for collect, field in (
        ({"levels": {BRIDGES: 1}}, "select.selectors"),
        ({"levels": {BRIDGES: 1}, "agent": "tiny-quick", "keep": "successes"}, "collect.keep"),
    ):
        with pytest.raises(InputError) as raised:
            check_inputs(recipe(collect=collect))
        assert raised.value.field == field and raised.value.exit_code == 2


def test_the_recipe_says_who_plays_on_and_what_that_takes():
    asked = resource_requests(recipe().model_copy(update={"workers": 3}))
    assert {(r.part, r.who, r.count) for r in asked if r.stage == "select"} == {("verified", "workers", 3)}
    named = dict(models(recipe()))
    assert named == {"collect.agent.model": "tiny-quick"}
    assert dict(models(recipe(collect={"file": "x"})))["select.model"] == "tiny-quick"
    assert dict(models(recipe(agent="tiny-deepthink")))["select.verified.agent.model"] == "tiny-deepthink"


def test_alternative_and_agent_may_be_behind_endpoints_whose_tokens_are_counted(tmp_path):
    servers = [ChatServer(lambda body, side=side: f"Thought: well\nAction: {side}") for side in ("left", "right")]
    try:
        agent, other = ({"model": "m", "base_url": s.url, "key_variable": None, "retries": 0} for s in servers)
        made = recipe(agent=agent, alternative={**other, "model": "big"})
        annotated, pairs = run(made, tmp_path, [failed(4, ("left",))])
    finally:
        for server in servers:
            server.kill()
    assert annotated["b4"].critical == (0,) and annotated["b4"].model == "big"
    assert (pairs[0].chosen.thought, pairs[0].evidence["played_by"]) == ("well", "m")
    calls = 1 + 5 * (COUNT - 1) + 5 * (LIMIT - 1)
    numbers = told(tmp_path)
    assert (numbers["calls"], numbers["tokens_read"], numbers["tokens_written"]) == (calls, 10 * calls, 2 * calls)
    assert {body["temperature"] for _, body, _ in servers[0].requests} == {1.0}, "a greedy agent has to draw"
    assert [body["temperature"] for _, body, _ in servers[1].requests] == [0.0]


@pytest.mark.slow  # starts Ray
def test_on_ray_actors_every_roll_out_ends_as_in_one_process_whatever_else_is_played(tmp_path, monkeypatch):
    monkeypatch.undo()  # actors hold models of their own
    agent, verified = {"model": "tiny-quick", "temperature": 1.0}, {"rollouts": 4, "most_steps": 3, "significance": 0.1}
    collect = {"levels": {"GoToLocalS6N4": 12}, "max_steps": 16, "agent": agent}
    select = {"selectors": ["verified"], "verified": verified}
    config = {"name": "x", "num_envs": 4, "collect": collect, "select": select}
    found = []
    for workers in (0, 2):
        made = Recipe.model_validate({**config, "workers": workers})
        pipeline.run(made, tmp_path / str(workers), ("collect", "select"))
        found.append([{**row, "replayed": 0} for row in rows_of(tmp_path / str(workers))])
    one, two = (sorted(rows, key=json.dumps) for rows in found)
    assert one == two and any(row.get("success") for row in one)
    for name in ("annotations/verified.jsonl", "pairs/verified.jsonl"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
