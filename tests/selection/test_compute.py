"""What selecting takes: FLOPs of models and environment steps, from what a selection has written down."""

import pytest
from own_round_runs import own_rounds_recipe, save_own_model
from switch_models import model

from atlas_ray.agents.rendering import Renderer
from atlas_ray.models.loading import parameters
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.rundir.files import append_jsonl, write_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.selection.compute import compute_of, selection_compute
from atlas_ray.trajectory import Step, Trajectory

WEIGHTS = sum(p.numel() for p in model("quick").parameters())


@pytest.fixture
def folder(tmp_path):
    save_own_model(tmp_path / "own")
    return tmp_path / "own"


def recipe(folder, *selectors, **verified):
    other = {"model": str(folder)}
    names = {"selectors": list(selectors), "verified": {"propose": "entropy", "alternative": other, **verified}}
    return own_rounds_recipe(
        folder,
        {
            "select": names,
            "finetune": {
                "arms": [
                    {"selector": "verified", "pairs": True} if "verified" in selectors else {"selector": selectors[0]}
                ]
            },
        },
    )


def episode(number):
    steps = tuple(Step(observation=f"You see a red ball {n} steps forward", action="go forward") for n in range(number))
    about = {"env": "BabyAIText/GoToLocal-v0", "task": "GoToLocal-v0", "seed": number, "source": "x"}
    return Trajectory(id=str(number), instruction="go to a red ball", steps=steps, score=0.0, success=False, **about)


def test_a_pass_over_all_tokens_is_two_flops_a_weight_and_token(folder, tmp_path):
    episodes = [episode(2), episode(5)]
    tokens = sum(len(Renderer(build_tokenizer(), "action").render(t).ids) for t in episodes)
    made = recipe(folder, "entropy")
    assert parameters(str(folder)) == WEIGHTS
    assert selection_compute(made, tmp_path, "entropy", episodes) == {"flops": 2 * WEIGHTS * tokens, "steps": 0}
    for free in ("all", "successes", "random_entropy"):
        assert selection_compute(made, tmp_path, free, episodes) == {"flops": 0, "steps": 0}
    assert selection_compute(made, tmp_path, "value", episodes) == {"flops": None, "steps": None}


def test_roll_outs_are_counted_from_every_line_and_unknown_where_one_is(folder, tmp_path):
    path = RunLayout(tmp_path).scores("verified")
    moves = {"id": "a", "proposed": [0], "moves": {}, "steps": 1, "replayed": 4, "calls": 1, "computed": 30}
    played = {"id": "a", "step": 0, "number": 0, "replayed": 0}
    lost = {**played, "side": "chosen", "lost": True, "steps": 2, "calls": 2, "computed": 70}
    ended = {**played, "side": "rejected", "success": True, "steps": 1, "calls": 0}
    append_jsonl(path, [moves, lost, {**lost, "computed": 100}, ended])
    made = recipe(folder, "verified", "entropy")
    taken = selection_compute(made, tmp_path, "verified", [])
    assert taken == {"flops": 2 * WEIGHTS * (30 + 70 + 100), "steps": 5 + 2 + 2 + 1}
    expert = recipe(folder, "verified", "entropy", alternative="expert")
    rows = [{**moves, "calls": 0}, lost]
    path.unlink()
    append_jsonl(path, rows)
    assert selection_compute(expert, tmp_path, "verified", [])["flops"] == 2 * WEIGHTS * 70
    append_jsonl(path, [{name: value for name, value in lost.items() if name != "computed"}])
    assert selection_compute(expert, tmp_path, "verified", []) == {"flops": None, "steps": 5 + 2 + 2}


def test_an_arm_pays_for_whoever_proposes_and_for_all_that_it_joins(folder, tmp_path):
    layout = RunLayout(tmp_path)
    for name, flops in (
        ("verified", 100),
        ("entropy", 10),
        ("perplexity", 1),
        ("random_entropy", 0),
        ("union_entropy_perplexity", 0),
    ):
        write_json(layout.selection_compute(name), {"flops": flops, "steps": flops})
    made = recipe(folder, "verified", "entropy", "perplexity", "random_entropy", "union_entropy_perplexity")
    found = {name: compute_of(made, tmp_path, name)["flops"] for name in made.select.selectors}
    assert found == {
        "verified": 110,
        "entropy": 10,
        "perplexity": 1,
        "random_entropy": 0,
        "union_entropy_perplexity": 11,
    }
    layout.selection_compute("entropy").unlink()
    assert compute_of(made, tmp_path, "verified") == {"flops": None, "steps": None}
