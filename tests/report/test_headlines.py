"""The first screen says what the intervals allow, and no more. All numbers here are made up."""

import json

import pytest
from report_runs import arm, policy

from atlas_ray.cli import main
from atlas_ray.data.results import Arm, Policy
from atlas_ray.errors import InputError
from atlas_ray.report.arm_headlines import arm_headlines
from atlas_ray.report.outcomes import read_outcomes
from atlas_ray.report.run import Run, read_run
from atlas_ray.report.switch_headlines import switch_headlines
from atlas_ray.report.switch_plots import frontier
from atlas_ray.rundir.files import append_jsonl, write_json
from atlas_ray.rundir.layout import RunLayout

pytestmark = pytest.mark.usefixtures("without_drawing")


def run_of(tmp_path, arms=(), policies=()):
    parts = {"atlas": {"arms": arms}} if arms else {}
    parts |= {"londi": {"policies": policies}} if policies else {}
    write_json(tmp_path / "results.json", parts)
    return read_run(tmp_path)


def switch(tmp_path, *rows):
    (headline,) = switch_headlines(run_of(tmp_path, policies=rows))
    return headline


QUICK, DEEP = policy("always-quick", 0.4, 0.0, 0.02), policy("always-deepthink", 0.8, 12.0, 0.02)
RANDOM = policy("random(p=0.16)", 0.5, 1.9, 0.02)


def test_a_switch_that_reaches_the_large_model_with_fewer_calls_is_said_to(tmp_path):
    said = switch(tmp_path, QUICK, DEEP, policy("londi(c=0.05)", 0.8, 1.92, 0.02, cost=0.05), RANDOM)
    assert said.answer == (
        "The switch reaches the large model's success with 84\N{NO-BREAK SPACE}% fewer calls; it beats random calls "
        "at its rate, so where it calls matters."
    )
    assert (
        said.numbers[0].startswith("londi(c=0.05) less always-deepthink: +0.00 [") and "1.92 calls" in said.numbers[0]
    )
    assert said.numbers[1].startswith("londi(c=0.05) less random(p=0.16): +0.30 [+0.27, ")


def test_what_cannot_be_told_of_a_switch_is_said_to_be_so(tmp_path):
    near = policy("londi(c=0.05)", 0.78, 1.92, 0.07, cost=0.05, seeds=[0, 1], success_by_seed=[0.7, 0.86])
    said = switch(tmp_path, QUICK, DEEP, near, policy("random(p=0.16)", 0.74, 1.9, 0.07))
    assert said.answer == (
        "Whether the switch, with 84\N{NO-BREAK SPACE}% fewer calls, reaches the large model's success, and whether it "
        "beats random calls at its rate, cannot be told from 150 episodes and 2 training seeds."
    )


def test_a_switch_that_falls_short_or_calls_in_the_wrong_places_is_said_to(tmp_path):
    low = policy("londi(c=0.05)", 0.42, 1.92, 0.02, cost=0.05)
    said = switch(tmp_path, QUICK, DEEP, low, RANDOM)
    assert said.answer.startswith("The switch falls short of the large model, with 0.42 for 0.80 and 84")
    assert said.answer.endswith("it is worse than random calls at its rate, so it calls in the wrong places.")


def test_of_several_switches_the_one_with_fewest_calls_that_reaches_it_is_named(tmp_path):
    rows = [
        policy("londi(c=0.02)", 0.81, 4.0, 0.01, cost=0.02),
        policy("londi(c=0.05)", 0.80, 2.0, 0.01, cost=0.05),
        policy("londi(c=0.5)", 0.5, 0.3, 0.01, cost=0.5),
    ]
    said = switch(tmp_path, QUICK, DEEP, *rows)
    assert said.answer.startswith("The switch londi(c=0.05) reaches the large model's success with 83")
    assert "drawing one model for each episode" in said.answer, "there is no random twin"
    assert len(said.numbers) == 4
    none = switch(tmp_path, QUICK, DEEP, *(policy(r["name"], 0.5, 3.0, 0.02, cost=r["cost"]) for r in rows))
    assert none.answer.startswith("No switch reaches the large model's success: the switch londi(c=0.02) falls short")


def test_a_rule_that_is_kept_as_a_switch_may_be_the_one_that_pays(tmp_path):
    learned = policy("londi(c=0.05)", 0.5, 1.92, 0.01, cost=0.05)
    random = policy("random(p=0.17)", 0.6, 2.0, 0.01)
    rule = policy("classifier(p=0.20)", 0.80, 2.0, 0.01, checkpoint="switch-classifier0.20")
    said = switch(tmp_path, QUICK, DEEP, learned, random, rule)
    assert said.answer.startswith("The switch classifier(p=0.20) reaches the large model's success with 83")
    assert said.answer.endswith("it beats random calls at its rate, so where it calls matters.")
    assert said.numbers[1].startswith("classifier(p=0.20) less random(p=0.17): +0.20 [")
    alone = switch(tmp_path, QUICK, DEEP, random, {**rule, "success": 0.5, "ci95": [0.49, 0.51]})
    assert alone.answer.startswith("The switch falls short of the large model, with 0.50 for 0.80")
    assert not switch_headlines(run_of(tmp_path, policies=[QUICK, DEEP, random]))


def test_a_switch_that_always_calls_saves_nothing(tmp_path):
    said = switch(tmp_path, QUICK, DEEP, policy("londi(c=0)", 0.8, 12.0, 0.02, cost=0.0)).answer
    assert said.startswith("The switch reaches the large model's success with as many calls; ")


def test_without_the_large_model_alone_nothing_is_said_of_savings(tmp_path):
    assert "cannot be told" in switch(tmp_path, QUICK, policy("londi(c=0.05)", 0.8, 2.0, cost=0.05)).answer


def test_the_more_switches_the_wider_what_is_asked_of_each(tmp_path):
    one = policy("londi(c=0.05)", 0.80, 2.0, 0.03, cost=0.05)
    assert "reaches" in switch(tmp_path, QUICK, DEEP, one).answer.split(";")[0]
    many = [policy(f"londi(c={c})", 0.80, 2.0, 0.03, cost=float(c)) for c in range(1, 12)]
    assert "cannot be told" in switch(tmp_path, QUICK, DEEP, *many).answer.split(";")[0]


def test_arms_that_are_better_worse_and_unclear_are_kept_apart(tmp_path):
    rows = [arm("random", 0.5, 0.2, 0.02), arm("value", 0.7, 0.2, 0.02), arm("oracle", 0.3, 0.2, 0.02)]
    headline, *_ = arm_headlines(run_of(tmp_path, [*rows, arm("union_value_oracle", 0.51, 0.2, 0.02)]))
    assert headline.answer == (
        "It depends on the arm. Better than random steps under the same cap: value; worse: oracle; cannot be told: "
        "union_value_oracle."
    )
    for critical, said in (
        (0.7, "beats random steps under the same cap: 0.70 against 0.50."),
        (0.51, "cannot be told"),
    ):
        (headline, *_) = arm_headlines(run_of(tmp_path, [rows[0], arm("value", critical, 0.2, 0.02)]))
        assert said in headline.answer
    (headline, *_) = arm_headlines(run_of(tmp_path, [rows[0], arm("value", 0.3, 0.2, 0.02)]))
    assert headline.answer.startswith("No: random steps") and headline.answer.endswith("0.50 against 0.30.")


def test_as_many_random_steps_come_before_those_under_the_same_cap(tmp_path):
    rows = [arm("random", 0.9, 0.2, 0.02), arm("random_value", 0.5, 0.2, 0.02), arm("value", 0.7, 0.2, 0.02)]
    headline, *_ = arm_headlines(run_of(tmp_path, rows))
    assert headline.answer.startswith("Training on the critical steps (value) beats as many random steps")
    assert len(headline.numbers) == 1, "the control is no critical arm"


def test_all_steps_and_forgetting(tmp_path):
    base = {**arm("none", 0.1, 0.9, 0.02)}
    rows = [base, arm("all", 0.6, 0.4, 0.02), arm("value", 0.6, 0.9, 0.02)]
    everything, forgetting = arm_headlines(run_of(tmp_path, rows))
    assert everything.answer == (
        "Critical steps (value) teach as much as all steps, with 67\N{NO-BREAK SPACE}% fewer trained tokens."
    )
    assert forgetting.answer == (
        "On PutNextLocalS5N3, which the untuned model could do, against it: worse: all steps; as good: value."
    )
    assert forgetting.numbers[0].startswith("all: 0.40 for 0.90, \N{MINUS SIGN}0.50 [")
    assert len(arm_headlines(run_of(tmp_path, [arm("none", 0.1, 0.2), *rows[1:]]))) == 1, "it could do nothing"


def episodes(model, wins, level="PickupDist", **more):
    rows = [{"model": model, "level": level, "seed": i, "success": w, **more} for i, w in enumerate(wins)]
    return [{**row, "lost": False} for row in rows]


def test_what_played_the_same_episodes_is_paired(tmp_path):
    rows = [arm("random", 0.5, None, 0.1), arm("value", 0.55, None, 0.1)]
    hard = [i % 2 == 0 for i in range(200)]
    better = [w or i % 20 == 1 for i, w in enumerate(hard)]
    path = tmp_path / "evaluation" / "episodes.jsonl"
    write_json(tmp_path / "results.json", {"atlas": {"arms": rows}})
    append_jsonl(path, episodes("random/0", hard) + episodes("value/0", better))
    (headline,) = arm_headlines(read_run(tmp_path))
    assert "beats random steps" in headline.answer, "five in a hundred more, and none less"
    path.unlink()
    (headline,) = arm_headlines(read_run(tmp_path))
    assert "cannot be told" in headline.answer, "as if independent"


def test_lost_episodes_are_left_out_for_both_and_a_later_row_may_have_them(tmp_path):
    path = RunLayout(tmp_path).evaluation_episodes
    lost = {"model": "none", "level": "PickupDist", "seed": 1, "success": False, "lost": True}
    append_jsonl(path, [*episodes("none", [True]), lost, *episodes("value+anchor0.5/3", [True, False])])
    outcomes = read_outcomes(RunLayout(tmp_path))
    assert outcomes.arms["none"] == {None: {("PickupDist", 0): True}}
    assert outcomes.arms["value+anchor0.5"] == {3: {("PickupDist", 0): True, ("PickupDist", 1): False}}
    a, b = (Arm.model_validate(row) for row in (arm("value", 0.5, 0.2, anchor=0.5), arm("none", 0.5, 0.2)))
    assert outcomes.of_arms(a, b, ["PickupDist"]).episodes == 1
    assert outcomes.of_arms(a, b, ["PutNext"]) is None
    append_jsonl(path, [{**lost, "success": True, "lost": False}])
    assert read_outcomes(RunLayout(tmp_path)).of_arms(a, b, ["PickupDist"]).episodes == 2


def test_policies_are_paired_by_their_seeds(tmp_path):
    rows = [
        {"policy": name, "training": training, "level": "PickupLoc", "seed": i, "success": i < n}
        for name, training, n in (("londi(c=1)", 0, 30), ("londi(c=1)", 1, 32), ("always-quick", None, 10))
        for i in range(40)
    ]
    append_jsonl(tmp_path / "switch" / "episodes.jsonl", rows)
    outcomes = read_outcomes(RunLayout(tmp_path))
    a, b = (Policy.model_validate(policy(name, 0.5, 1.0)) for name in ("londi(c=1)", "always-quick"))
    assert outcomes.of_policies(a, b).mean == pytest.approx(21 / 40)


@pytest.mark.parametrize("line", ["{", "{}", '{"model": "none", "level": "x", "seed": 1}'])
def test_a_bad_episode_is_named(tmp_path, line):
    path = tmp_path / "evaluation" / "episodes.jsonl"
    append_jsonl(path, [json.loads('{"model": "none", "level": "x", "seed": 0, "success": true}')])
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError) as caught:
        read_outcomes(RunLayout(tmp_path))
    assert caught.value.path == path and caught.value.line == 2


def test_a_line_still_being_written_is_no_episode(tmp_path):
    path = tmp_path / "evaluation" / "episodes.jsonl"
    append_jsonl(path, episodes("none", [True]))
    with path.open("a") as file:
        file.write('{"model"')
    assert len(read_outcomes(RunLayout(tmp_path)).arms["none"][None]) == 1


def test_the_frontier_leaves_out_what_another_beats_and_the_oracle():
    rows = [
        *(policy(name, success, calls) for name, success, calls in (("always-quick", 0.4, 0.0), ("a", 0.5, 2.0))),
        *(policy(name, success, calls) for name, success, calls in (("b", 0.45, 3.0), ("oracle", 0.9, 1.0))),
        *(policy(name, success, calls) for name, success, calls in (("c", 0.6, 2.0), ("always-deepthink", 0.6, 9.0))),
    ]
    found = frontier([Policy.model_validate(row) for row in rows], "calls")
    assert [p.name for p in found] == ["always-quick", "c"]


def test_what_was_trained_once_has_a_caveat(tmp_path):
    rows = [arm("random", 0.5, 0.2), {**arm("value", 0.7, 0.2), "seeds": [0]}]
    assert arm_headlines(run_of(tmp_path, rows))[0].caveat.startswith("Trained once")
    assert arm_headlines(run_of(tmp_path, [rows[0], arm("value", 0.7, 0.2)]))[0].caveat == ""
    for seeds, caveat in (([0], "Trained once"), ([0, 1], "")):
        one = policy("londi(c=0.05)", 0.8, 2.0, cost=0.05, seeds=seeds, success_by_seed=[0.8] * len(seeds))
        assert switch(tmp_path, QUICK, DEEP, one).caveat[:12] == caveat


def test_the_command_ends_with_an_answer_to_each_question(tmp_path, capsys):
    rows = [arm("none", 0.1, 0.1), arm("all", 0.3, 0.2), arm("random_value", 0.2, 0.2), arm("value", 0.6, 0.2)]
    run_of(tmp_path, rows, [QUICK, DEEP, policy("londi(c=0.05)", 0.8, 1.92, 0.02, cost=0.05), RANDOM])
    write_json(RunLayout(tmp_path).atlas_scores, {"arms": rows})
    layout = RunLayout(tmp_path)
    write_json(layout.switch_policies, json.loads(layout.results.read_text())["londi"]["policies"])
    write_json(layout.recipe, {"name": "small"})
    assert main(["report", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    saved = "The switch reaches the large model's success with 84 % fewer calls; it beats random calls"
    assert f"(1) When is the large model worth a call? {saved}" in told
    assert "Training on the critical steps (value) beats as many random steps: 0.60 against 0.20. Can they" in told
    assert "Critical steps (value) are better than all steps, with 67 % fewer trained tokens." in told
    assert "forget" not in told


def test_a_run_without_scores_has_no_headlines(tmp_path):
    run = Run(tmp_path, None, None)
    assert switch_headlines(run) == [] and arm_headlines(run) == []
