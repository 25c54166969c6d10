"""ATLaS from top to bottom: expert episodes, critical steps, masked fine-tuning, and success before and after.

    python examples/atlas_loop.py    # a minute or two on two cores
    python examples/atlas_loop.py --file trajectories.jsonl --annotations annotations.jsonl

The fine-tuning is that of `atlas-ray run`, loss for loss; its selector "value" goes by rewards instead of success.
For BabyAI-Text and tiny-quick only, whose actions are one token each.
"""

import argparse
import random
import time

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from atlas_ray import envs
from atlas_ray.agents.rendering import Renderer
from atlas_ray.models.loading import load_model, load_tokenizer
from atlas_ray.trajectory import Annotation, Step, Trajectory, max_critical_steps, read_annotations, read_trajectories

EXPERT_STEPS, PLAY_STEPS, ROLLOUT_STEPS, THOUGHT_TOKENS, SIDE_BY_SIDE = 40, 20, 8, 16, 64


def tracked(items, what):
    """The items, with a line every few seconds that says how long the rest will take."""
    start = said = time.monotonic()
    for done, item in enumerate(items):
        if done and time.monotonic() - said > 5:
            said = time.monotonic()
            left = (said - start) * (len(items) / done - 1)
            print(f"  {what}: {done}/{len(items)}, about {left:.0f} s left", flush=True)
        yield item


# (1) Expert episodes: the first ``count`` from ``seed`` on that the environment's own expert solves, with its thoughts.
def expert_episodes(level, count, seed):
    env, name, found = envs.make(level, max_steps=EXPERT_STEPS), envs.full_id(level), []
    for variation in range(seed, seed + 100_000):
        observation, info = env.reset(seed=variation)
        expert, steps, over = env.expert(), [], False
        try:
            while not over:
                move = expert.act()
                following, reward, terminated, truncated, info = env.step(move.action)
                steps.append(Step(observation=observation, thought=move.thought, action=move.action, reward=reward))
                observation, over = following, terminated or truncated
        except envs.ExpertGaveUpError:
            continue
        if info["success"]:
            about = {"id": f"{name}/{variation}", "env": name, "task": env.task, "seed": variation, "source": "expert"}
            found.append(Trajectory(**about, instruction=info["goal"], steps=tuple(steps), score=1.0, success=True))
            if len(found) == count:
                return found


# Playing: the model thinks freely, then takes an admissible action; all episodes side by side, over one cache.
@torch.inference_mode()
def play(model, renderer, starts, horizon, generator=None):
    """For each (environment, seed, steps to take again first), whether the model succeeds within ``horizon`` steps."""
    games, new = [envs.make(level) for level, _, _ in starts], []
    for env, (_, seed, steps) in zip(games, starts, strict=True):
        observation, info = env.reset(seed=seed)
        for step in steps:
            observation = env.step(step.action)[0]
        new.append(renderer.prompt(info["goal"], steps, observation))
    cache, mask_BT = DynamicCache(), torch.zeros(len(games), 0, dtype=torch.long)

    def feed(new):
        """Append tokens to every row, some perhaps none; logits behind the last one. The mask hides the padding."""
        nonlocal mask_BT
        lengths_B = torch.tensor([len(row) for row in new])
        columns_L = torch.arange(max(lengths_B))
        ids_BL = pad_sequence([torch.tensor(row, dtype=torch.long) for row in new], batch_first=True)
        positions_BL = mask_BT.sum(1, keepdim=True) + columns_L
        mask_BT = torch.cat([mask_BT, (columns_L < lengths_B[:, None]).long()], 1)
        return model(ids_BL, mask_BT, positions_BL, cache).logits[torch.arange(len(new)), lengths_B - 1]

    def choose(logits_BN):
        if generator:  # greedy without one
            return torch.multinomial(logits_BN.softmax(-1), 1, generator=generator)[:, 0].tolist()
        return logits_BN.argmax(-1).tolist()

    alive, won, stop = list(range(len(games))), [False] * len(games), {renderer.separator[0], renderer.end_of_turn}
    for _ in range(horizon):
        logits_BV, writing = feed(new), [True] * len(alive)
        for _ in range(THOUGHT_TOKENS):
            tokens = choose(logits_BV)
            writing = [on and token not in stop for on, token in zip(writing, tokens, strict=True)]
            if not any(writing):
                break
            logits_BV = feed([[token] if on else [] for on, token in zip(writing, tokens, strict=True)])
        logits_BV = feed([renderer.separator] * len(alive))
        offered = [games[i].admissible() for i in alive]
        tokens_BA = torch.tensor([[token for (token,) in map(renderer.action, actions)] for actions in offered])
        new, going = [], []
        for row, choice in enumerate(choose(logits_BV.gather(1, tokens_BA))):
            action, i = offered[row][choice], alive[row]
            observation, _, terminated, truncated, info = games[i].step(action)
            won[i] = info["success"]
            if not (terminated or truncated):
                going.append(row)
                new.append([*renderer.action(action), renderer.end_of_turn, *renderer.context(observation)])
        if not going:
            return won
        cache.batch_select_indices(torch.tensor(going))
        mask_BT, alive = mask_BT[going], [alive[row] for row in going]
    return won


def play_all(model, renderer, starts, horizon, generator=None):
    batches = [starts[k : k + SIDE_BY_SIDE] for k in range(0, len(starts), SIDE_BY_SIDE)]
    return [w for batch in tracked(batches, "batches played") for w in play(model, renderer, batch, horizon, generator)]


# (2) Critical steps: at most ``fraction`` of an episode (rounded up), where roll-outs win more often after than before.
def critical_steps(model, renderer, trajectories, fraction, rollouts, seed):
    states = sorted(((t, i) for t in trajectories for i in range(len(t.steps))), key=lambda state: state[1])
    starts = [(t.env, t.seed, t.steps[:i]) for t, i in states for _ in range(rollouts)]
    won = play_all(model, renderer, starts, ROLLOUT_STEPS, torch.Generator().manual_seed(seed))
    value = {(t.id, i): sum(won[k * rollouts : (k + 1) * rollouts]) / rollouts for k, (t, i) in enumerate(states)}
    annotations = []
    for t in trajectories:
        value[t.id, len(t.steps)] = 1.0  # there the expert has succeeded
        gain = [value[t.id, i + 1] - value[t.id, i] for i in range(len(t.steps))]
        best = sorted(range(len(gain)), key=lambda i: (-gain[i], i))[: max_critical_steps(fraction, len(gain))]
        critical = tuple(sorted(i for i in best if gain[i] > 0))
        annotations.append(Annotation(trajectory_id=t.id, selector="value", fraction=fraction, critical=critical))
    return annotations


# (3) Masked fine-tuning: the whole episode is context, only critical turns (thought, action, end of turn) are labels.
def masked_examples(trajectories, annotations, renderer):
    critical, examples = {a.trajectory_id: a.critical for a in annotations}, []
    for trajectory in (t for t in trajectories if critical.get(t.id)):
        rendered = renderer.render(trajectory)
        ids_L = torch.tensor(rendered.ids)
        labels_L = torch.full_like(ids_L, -100)
        for start, end in (rendered.spans[i] for i in critical[trajectory.id]):
            labels_L[start:end] = ids_L[start:end]
        examples.append((ids_L, labels_L))
    return examples


def train(model, examples, steps, seed=0, batch_size=32, learning_rate=1e-3, warmup=0.1, clip=1.0):
    """Tune ``model`` in place on (ids, labels); the loss of each of the ``steps`` optimiser steps."""
    assert examples, "no step is critical: there is nothing to train on"
    optimizer = torch.optim.AdamW(model.train().parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    plan, losses, warm = [], [], max(1, round(warmup * steps))
    for epoch in range(steps):  # as many are enough, each is at least one optimiser step
        random.Random(f"{seed}/{epoch}").shuffle(order := list(range(len(examples))))
        plan += [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    for step, indices in enumerate(tracked(plan[:steps], "optimiser steps")):
        scale = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
        optimizer.param_groups[0]["lr"] = learning_rate * scale
        # padding on the right and causal attention: no real token sees padding, so no mask is needed
        ids_BL = pad_sequence([examples[i][0] for i in indices], batch_first=True)
        labels_BL = pad_sequence([examples[i][1] for i in indices], batch_first=True, padding_value=-100)
        logits_BLV = model(ids_BL, use_cache=False).logits
        # the mean over the trained tokens of the whole optimiser step, not of each episode
        loss = F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


# The whole loop, and (4) the same fresh episodes of the same level before and after.
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = {"level": "GoToDoor", "episodes": 48, "fraction": 0.3, "rollouts": 4, "epochs": 4, "batch-size": 16}
    for name, default in (options | {"plays": 100, "seed": 0, "file": "", "annotations": ""}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default or 'none'}")
    args = parser.parse_args(argv)
    model, renderer = load_model("tiny-quick"), Renderer(load_tokenizer("tiny-quick"))
    first, unseen = args.seed * 100_000, (1000 + args.seed) * 100_000  # seeds that never meet
    trajectories = read_trajectories(args.file) if args.file else expert_episodes(args.level, args.episodes, first)
    print(f"(1) {len(trajectories)} expert episodes", flush=True)
    given = args.annotations and read_annotations(args.annotations, trajectories)
    annotations = given or critical_steps(model, renderer, trajectories, args.fraction, args.rollouts, args.seed)
    critical, total = sum(len(a.critical) for a in annotations), sum(len(t.steps) for t in trajectories)
    print(f"(2) {critical} of {total} steps are critical ({critical / total:.0%})", flush=True)
    starts = [(trajectories[i % len(trajectories)].env, unseen + i, ()) for i in range(args.plays)]
    before = sum(play_all(model, renderer, starts, PLAY_STEPS))
    steps = args.epochs * -(-len(trajectories) // args.batch_size)  # whatever is selected
    losses = train(model, masked_examples(trajectories, annotations, renderer), steps, args.seed, args.batch_size)
    print(f"(3) {steps} optimiser steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}", flush=True)
    after = sum(play_all(model, renderer, starts, PLAY_STEPS))
    print(f"(4) success in {args.plays} new episodes: {before / args.plays:.2f} before, {after / args.plays:.2f} after")


if __name__ == "__main__":
    torch.set_num_threads(1)  # passes are so small that a second thread hardly helps, and hurts where a core is busy
    main()
