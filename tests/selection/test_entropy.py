"""Entropies of actions in one pass over whole trajectories, against one token at a time behind its prompt."""

import math

import pytest
import torch
from tool_tokenizers import model_with_tools

from atlas_ray import pipeline
from atlas_ray.agents.rendering import Renderer
from atlas_ray.agents.rendering_chat import ChatRenderer
from atlas_ray.models.loading import load_model, load_tokenizer
from atlas_ray.models.tiny import build_model, build_tokenizer, vocabulary
from atlas_ray.recipe.loading import Recipe
from atlas_ray.selection import scored_stage
from atlas_ray.selection.entropy import entropies, select_by_entropy
from atlas_ray.selection.perplexity import step_perplexities
from atlas_ray.selection.scored_stage import saved_scores
from atlas_ray.selection.turn_pass import measured_steps
from atlas_ray.trajectory import read_annotations
from tests.agents import test_rendering_tools as tools
from tests.selection.test_perplexity import EPISODES, capped, episode


def measured(model, renderer, episodes, *more):
    found, problems = measured_steps(model, renderer, episodes, {"entropy": entropies}, *more)
    return found["entropy"], problems


def one_token_at_a_time(renderer, model, trajectory):
    """Sums over the tokens of each action, each token asked for behind a prompt of its own."""
    found = []
    for t, step in enumerate(trajectory.steps):
        prompt = renderer.prompt(trajectory.instruction, trajectory.steps[:t], step.observation)
        turn, action = renderer.turn(step), renderer.action(step.action)
        before = [*prompt, *turn[: len(turn) - 1 - len(action)]]
        total = 0.0
        for i in range(len(action)):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*before, *action[:i]]])).logits[0, -1]
            p = logits.double().softmax(-1)
            total -= sum(float(x) * math.log(float(x)) for x in p if x > 0)
        found.append(total)
    return found


@pytest.mark.parametrize(("style", "name"), [("react", None), ("action", None), ("react", "tiny-quick")])
def test_equals_asking_for_each_token_of_each_action(style, name):
    small = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1).eval()
    model, tokenizer = (small, build_tokenizer()) if name is None else (load_model(name), load_tokenizer(name))
    renderer, some = Renderer(tokenizer, style), EPISODES[:3]
    found, problems = measured(model, renderer, some)
    assert problems == [] and list(found) == [t.id for t in some]
    for trajectory in some:
        assert found[trajectory.id] == pytest.approx(one_token_at_a_time(renderer, model, trajectory), rel=1e-3)


def test_capped_logits_count_as_the_model_caps_them():
    model, renderer = capped(), Renderer(build_tokenizer())
    found, _ = measured(model, renderer, EPISODES[:2])
    for trajectory in EPISODES[:2]:
        assert found[trajectory.id] == pytest.approx(one_token_at_a_time(renderer, model, trajectory), rel=1e-3)


def test_calls_are_actions_as_the_template_writes_them(tmp_path):
    name = model_with_tools(tmp_path / "model")
    model, tokenizer = load_model(str(name)).eval(), load_tokenizer(str(name))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # it knows nothing
    found, problems = measured(model, ChatRenderer(tokenizer), [tools.episode(*tools.STEPS)])
    actions = [tools.CALLED, tools.CATTED, "One: a.py.", "None."]
    tokens = [len(tokenizer(action, add_special_tokens=False)["input_ids"]) for action in actions]
    each = math.log(model.get_output_embeddings().weight.shape[0])
    assert problems == [] and found["t"] == pytest.approx([n * each for n in tokens], rel=1e-5)


def test_a_model_that_is_sure_has_none_and_one_that_knows_nothing_has_all_of_it():
    model, renderer = (
        build_model(hidden=32, layers=1, heads=2, intermediate=32, seed=1).eval(),
        Renderer(build_tokenizer()),
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # the embeddings are tied
    found, _ = measured(model, renderer, EPISODES[:2])
    for trajectory in EPISODES[:2]:
        tokens = [len(renderer.action(step.action)) for step in trajectory.steps]
        assert found[trajectory.id] == pytest.approx([n * math.log(len(vocabulary())) for n in tokens], rel=1e-5)
    logits = torch.full((3, 5), -torch.inf)
    logits[:, 2] = 0.0
    turns = type("Turns", (), {"logits_NV": logits, "lengths": (3,)})
    one = EPISODES[0].model_copy(update={"steps": EPISODES[0].steps[:1]})
    assert entropies(turns, type("R", (), {"action": lambda self, _: [1, 2]})(), one) == [0.0]


def test_both_measures_come_from_one_pass_and_are_what_they_are_alone():
    model, renderer = (
        build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1).eval(),
        Renderer(build_tokenizer()),
    )
    both, _ = measured_steps(
        model, renderer, EPISODES, {"perplexity": scored_stage._MEASURES["perplexity"], "entropy": entropies}
    )
    assert both["entropy"] == measured(model, renderer, EPISODES)[0]
    assert both["perplexity"] == step_perplexities(model, renderer, EPISODES)[0]


def test_what_does_not_fit_or_is_no_number_is_named():
    renderer = Renderer(build_tokenizer())
    sizes = sorted(len(renderer.render(t).ids) for t in EPISODES)
    small = build_model(hidden=32, layers=1, heads=2, intermediate=32, seed=1, context=sizes[-2]).eval()
    assert measured(small, renderer, EPISODES)[1] == [
        f"t12: has {sizes[-1]} tokens, the model takes {sizes[-2]}, so it has no entropies"
    ]
    with torch.no_grad():
        small.get_input_embeddings().weight[0] = torch.nan
    found, problems = measured(small, renderer, EPISODES[:1])
    assert found == {} and problems == ["t1: the model gives step 0 no finite entropy"]


def test_the_least_sure_steps_are_marked_up_to_the_cap():
    made = select_by_entropy(episode("t", 5), [0.2, 0.7, 1.234, 0.7, 0.1], 0.4, "m")
    assert (made.selector, made.critical, made.fraction, made.model) == ("entropy", (1, 2), 0.4, "m")
    assert made.reasons == {1: "entropy 0.70 nats", 2: "entropy 1.23 nats"}


def test_a_run_makes_one_pass_for_both_and_goes_on_where_it_was_killed(recipe, small, tmp_path, collected, monkeypatch):
    selectors = ["entropy", "perplexity", "random_entropy", "non-critical_entropy", "rank-mean_entropy_perplexity"]
    select = {"selectors": selectors, "model": str(small / "model")}
    own, run_dir = Recipe.model_validate(recipe.model_dump() | {"select": select}), tmp_path / "run"
    trajectories, passes, real = collected(own, run_dir), [], scored_stage.measured_steps
    monkeypatch.setattr(scored_stage, "measured_steps", lambda *a: passes.append([t.id for t in a[2]]) or real(*a))
    pipeline.run(own, run_dir, ("select",))
    assert passes == [[t.id for t in trajectories]]
    marks = {name: (run_dir / "annotations" / f"{name}.jsonl").read_text() for name in selectors}
    made = read_annotations(run_dir / "annotations" / "entropy.jsonl", trajectories)
    found = saved_scores(run_dir, "entropy")
    for t, a in zip(trajectories, made, strict=True):
        least = min(found[t.id][i] for i in a.critical)
        assert all(found[t.id][i] <= least for i in range(len(t.steps)) if i not in a.critical)
    scores = run_dir / "annotations" / "scores" / "entropy.jsonl"
    whole = scores.read_text()
    scores.write_text(whole[: len(whole) // 2])
    for name in selectors:
        (run_dir / "annotations" / f"{name}.jsonl").unlink()
    pipeline.run(own, run_dir, ("select",))
    assert len(passes) == 2 and {n: (run_dir / "annotations" / f"{n}.jsonl").read_text() for n in selectors} == marks
    assert sorted(scores.read_text().splitlines()) == sorted(whole.splitlines())
