"""What estimates say where the switch that is meant acts, and a few choices are drawn, as `gateway.explore` does.

    atlas-ray run switching-signals --out runs/switches        # or any run with learned switches and no runs of calls
    python benchmarks/switching_explore.py runs/switches       # those of training seed 0
    python benchmarks/switching_explore.py runs/switches --switches switch-budget2-seed0 --explore 0.1 --episodes 300

Each switch plays training episodes, and at that share of the steps the model is drawn from all that its budget allows.
From this log every one of them is estimated as from any other, seven tenths of the episodes for the model of what
follows; beside it what it has in other episodes, played as it is.
"""

import argparse
import random
from pathlib import Path

from atlas_ray.agents.rollout import SWITCH_RANDOM, decision_seed, env_spec, seed_block
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.data.results import interval
from atlas_ray.models.encoders import make_encoder
from atlas_ray.recipe.of_run import recipe_of
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.decision_cache import DecisionCache
from atlas_ray.switching.estimates import estimate
from atlas_ray.switching.evaluate import rollout_policy
from atlas_ray.switching.logged_stage import span
from atlas_ray.switching.players import close_players, open_players
from atlas_ray.switching.random_calls import logged_episode
from atlas_ray.switching.transitions import Transitions, split

OTHER_EPISODES = 50_000  # of the block that recipes take random episodes from, and far behind these


class Exploring:
    """A switch, with a share of the choices drawn; says with what probability each model came to act."""

    needs = frozenset({"encoded"})

    def __init__(self, switch, share):
        self.switch, self.share, self.chances = switch, share, {}

    def decide(self, situations):
        """The switch's choice, or any that the budget allows."""
        found = []
        for s, wanted in zip(situations, self.switch.decide(situations), strict=True):
            allowed = range(1 if s.left == 0 else self.switch.config.models)
            rng = random.Random(decision_seed(f"explore/{s.episode}", s.step))
            model = rng.choice(allowed) if rng.random() < self.share else wanted
            chance = (1 - self.share) * (model == wanted) + self.share / len(allowed)
            self.chances[int(s.episode.rsplit("/")[-1]), s.step] = chance
            found.append(model)
        return found

    def said(self, row):
        """The probabilities of an episode's steps."""
        return [self.chances[row["seed"], n] for n in range(row["steps"])]


def play(recipe, state, policy, seeds, config):
    """Episodes of a policy that sees what a switch does, step by step."""
    settings = recipe.switch
    rows = rollout_policy(
        policy,
        open_players(recipe, state, ()),
        [env_spec(recipe, level, settings.max_steps, "train") for level in settings.levels],
        seeds,
        config.budget,
        record=True,
        encoder=make_encoder(settings.encoder, settings.features),
        signals=config.signals,
        decision_cache=state.get_or_create(DecisionCache),
    )
    return sorted((row for row in rows if not row["lost"]), key=lambda row: row["seed"])


def main():
    """Play, estimate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--switches", nargs="+", help="names of checkpoints; by default those of training seed 0")
    parser.add_argument("--explore", nargs="+", type=float, default=[0.05, 0.1, 0.2])
    parser.add_argument("--episodes", type=int, default=300)
    options = parser.parse_args()
    recipe, found = recipe_of(options.run), RunLayout(options.run).switch_checkpoints
    names = options.switches or [path.name for path in found if path.name.endswith("seed0")]
    switches = {path.name: SwitchPolicy.load(path) for path in found if path.name in names}
    settings, state, count = recipe.switch, WorkerState(), options.episodes
    encoder, models = make_encoder(settings.encoder, settings.features), len(settings.models)
    first = seed_block(recipe.seed, SWITCH_RANDOM) + OTHER_EPISODES
    truth = {
        name: play(recipe, state, Exploring(switch, 0.0), range(first + count, first + 2 * count), switch.config)
        for name, switch in switches.items()
    }
    heads = [
        "who acted",
        "explored",
        "estimated",
        "success",
        "calls",
        "effective episodes",
        "success in others",
        "calls",
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for acting, switch in switches.items():
        for share in options.explore:
            policy = Exploring(switch, share)
            rows = play(recipe, state, policy, range(first, first + count), switch.config)
            episodes = [logged_episode(row, models, policy.said(row)) for row in rows]
            for name, meant in switches.items():
                about = (encoder, settings.max_steps, settings.signals, meant.config.weights)
                learned, judged = (Transitions.of(part, *about) for part in split(episodes, settings.held_out))
                budget = None if meant.config.budget is None else int(meant.config.budget)

                def decide(features, meant=meant):
                    return meant.numbers(features).argmax(-1)

                row = estimate(decide, models, budget, judged, learned)
                said, own = row["doubly_robust"], truth[name]
                mean, low, high = interval([[r["success"] for r in own]])
                cells = [acting, f"{share:g}", name, span(said["success"]), span(said["calls"])]
                cells += [f"{row['ess']:.0f} of {row['episodes']}", f"{mean:.2f} [{low:.2f}, {high:.2f}]"]
                cells += [f"{sum(r['calls'] for r in own) / len(own):.2f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
    close_players(state)


if __name__ == "__main__":
    main()
