"""LONDI and LONDI-B from top to bottom: a switch learns where on a chain the large model is worth its call.

    python examples/londi_loop.py                        # a cost of 0.05 a call, then a budget of 2; under a minute
    python examples/londi_loop.py --cost 0.2 --seed 1
    python examples/londi_loop.py --budget 3

Stands alone, with probabilities in place of models: QUICK goes on with the one in QUICK, DEEPTHINK with DEEPTHINK.
The package learns as this does, between real models (arXiv 2402.12061; the network and what explores are ours).
"""

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from torch import nn

# (1) The chain: 12 states, the reward 1 behind the last one. Who does not go on is at the end, with nothing.
QUICK = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.2, 1.0, 0.65, 1.0, 1.0, 0.35, 1.0])
DEEPTHINK = torch.where(QUICK < 1, 0.95, 1.0)
LENGTH, GAMMA = len(QUICK), 0.98
ROWS, WIDTH, BATCH, CAPACITY, LEARNING_RATE, TAU, WARMUP = 16, 64, 64, 20_000, 1e-3, 0.01, 500


def features(states_N, lefts_N, budget):
    """[N, 14]: the state (of real models: encoded text), the share of the budget that is left, of the steps used."""
    share_N = lefts_N / max(1, budget) if budget is not None else torch.ones(len(states_N))
    return torch.cat([F.one_hot(states_N, LENGTH), share_N[:, None], states_N[:, None] / LENGTH], 1)


def step(states_N, lefts_N, wanted_N, cost, budget):
    """One step of every episode: the states after it, calls left, rewards, whether it is over, and who acted."""
    # the guard: whatever is asked for, no call gets through once the budget is spent, so it holds almost surely
    calls_N = wanted_N if budget is None else wanted_N & (lefts_N > 0)
    chances_N = torch.where(calls_N, DEEPTHINK[states_N], QUICK[states_N])
    on_N = torch.rand(len(states_N)) < chances_N
    won_N = on_N & (states_N == LENGTH - 1)
    lefts_N = lefts_N if budget is None else lefts_N - calls_N.long()
    return (states_N + 1).clamp(max=LENGTH - 1), lefts_N, won_N.float() - cost * calls_N, ~on_N | won_N, calls_N


# (2) The best switch, by backward induction over (state, calls left); and what any switch is worth, by the same.
def solve(cost, budget, calls=None):
    """Values [13, n + 1] and where it calls [12, n + 1], of the best switch or of the one that calls there."""
    lefts = (budget or 0) + 1
    values, chosen = torch.zeros(LENGTH + 1, lefts), torch.zeros(LENGTH, lefts, dtype=torch.bool)
    for s in reversed(range(LENGTH)):
        after_L = torch.ones(lefts) if s == LENGTH - 1 else GAMMA * values[s + 1]
        quick_L, deep_L = QUICK[s] * after_L, DEEPTHINK[s] * after_L - cost
        if budget is not None:  # a call leaves one less, and there is none where none is left
            deep_L = torch.cat([torch.tensor([-torch.inf]), DEEPTHINK[s] * after_L[:-1] - cost])
        chosen[s] = deep_L > quick_L if calls is None else calls[s] & deep_L.isfinite()
        values[s] = torch.where(chosen[s], deep_L, quick_L)
    return values, chosen


def switch_set(calls, budget):
    """The states where a switch calls in an episode that goes all the way."""
    left, states = budget or 0, []
    for s in range(LENGTH):
        if calls[s, left]:
            states.append(s)
            left -= budget is not None
    return states


# (3) The Q network: Q(s, 0) = v and Q(s, 1) = v + a, as a call's advantage is small beside the value of a state.
class Switch(nn.Module):
    def __init__(self, budget):
        super().__init__()
        self.budget = budget
        widths = [LENGTH + 2, WIDTH, WIDTH]
        hidden = [m for i in range(2) for m in (nn.Linear(widths[i], widths[i + 1]), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(WIDTH, 2))

    def forward(self, features_NF):
        q_N2 = self.layers(features_NF).cumsum(-1)
        if self.budget is None:
            return q_N2
        # the mask: minus infinity for a call with nothing left, so that none is asked for nor counted on
        spent_N = features_NF[:, -2] == 0
        return q_N2.masked_fill(spent_N[:, None] & torch.tensor([False, True]), -torch.inf)

    @torch.no_grad()
    def calls(self):
        """Where it calls [12, n + 1]."""
        lefts = (self.budget or 0) + 1
        states_N, lefts_N = torch.arange(LENGTH).repeat_interleave(lefts), torch.arange(lefts).repeat(LENGTH)
        return self(features(states_N, lefts_N, self.budget)).argmax(-1).bool().view(LENGTH, lefts)


# (4) Q-learning from a replay buffer: whatever was tried in an episode, the target is what the best would do next.
def learn(cost, budget, steps, seed=0, evaluate_every=500):
    """The best switch on the way, by its exact value, and that value."""
    torch.manual_seed(seed)
    switch = Switch(budget)
    target, optimizer = copy.deepcopy(switch), torch.optim.Adam(switch.parameters(), LEARNING_RATE, fused=True)
    width, full = LENGTH + 2, budget or 0
    buffer = [torch.zeros(CAPACITY, *shape) for shape in ((width,), (width,), (), (), ())]
    states_N, lefts_N, over_N = torch.zeros(ROWS).long(), torch.full([ROWS], full), torch.ones(ROWS).bool()
    rates_N, done, best, begun = torch.zeros(ROWS), 0, (-torch.inf, None), time.monotonic()
    said = begun
    while done < steps:
        states_N, lefts_N = torch.where(over_N, 0, states_N), torch.where(over_N, full, lefts_N)
        # each episode draws how often its random steps call; with one half in all of them the budget would always be
        # gone after a few steps, and no episode would show what a late call is worth
        draws_N = torch.rand(ROWS) ** (1 if budget is None else 3)
        rates_N = torch.where(over_N, draws_N, rates_N)
        epsilon = max(0.3, 1 - 1.4 * done / steps)
        seen_NF = features(states_N, lefts_N, budget)
        with torch.no_grad():
            greedy_N = switch(seen_NF).argmax(-1).bool()
        wanted_N = torch.where(torch.rand(ROWS) < epsilon, torch.rand(ROWS) < rates_N, greedy_N)
        states_N, lefts_N, rewards_N, over_N, calls_N = step(states_N, lefts_N, wanted_N, cost, budget)
        places_N = torch.arange(done, done + ROWS) % CAPACITY
        new = (seen_NF, features(states_N, lefts_N, budget), calls_N, rewards_N, over_N)
        for kept, values_N in zip(buffer, new, strict=True):
            kept[places_N] = values_N.float()
        done += ROWS
        if done < WARMUP:
            continue
        for _ in range(ROWS):  # one update for each step
            drawn_B = torch.randint(min(done, CAPACITY), [BATCH])
            obs_BF, next_BF, actions_B, rewards_B, ends_B = (kept[drawn_B] for kept in buffer)
            q_B = switch(obs_BF).gather(1, actions_B.long()[:, None])[:, 0]
            with torch.no_grad():  # double Q-learning: the network says which, its slow copy how good
                which_B1 = switch(next_BF).argmax(-1, keepdim=True)
                next_B = target(next_BF).gather(1, which_B1)[:, 0]
            loss = F.smooth_l1_loss(q_B, rewards_B + GAMMA * (1 - ends_B) * next_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(target.parameters()), list(switch.parameters()), TAU)
        if done % evaluate_every < ROWS or done >= steps:
            value = solve(cost, budget, switch.calls())[0][0, full].item()
            if value > best[0]:  # it gets better and worse again: the best is kept, not the last
                best = value, copy.deepcopy(switch)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                left = (said - begun) * (steps / done - 1)
                print(f"  step {done}/{steps}, about {left:.0f} s left, best so far {best[0]:.4f}", flush=True)
    return best[1], best[0]


# (5) Episodes, behind the guard; ``table`` says where to ask for a call.
def play(table, episodes, cost, budget):
    """Mean return, mean and most calls of an episode, and how often the guard turned a call down."""
    states_N, lefts_N = torch.zeros(episodes).long(), torch.full([episodes], budget or 0)
    alive_N, returns_N = torch.ones(episodes).bool(), torch.zeros(episodes)
    calls_N, turned_down = torch.zeros(episodes), 0
    for t in range(LENGTH):
        wanted_N = alive_N & table[states_N, lefts_N]
        states_N, lefts_N, rewards_N, over_N, made_N = step(states_N, lefts_N, wanted_N, cost, budget)
        returns_N, calls_N = returns_N + GAMMA**t * rewards_N * alive_N, calls_N + made_N
        turned_down += int((wanted_N & ~made_N).sum())
        alive_N = alive_N & ~over_N
    return returns_N.mean().item(), calls_N.mean().item(), int(calls_N.max()), turned_down


def show(name, cost, budget, steps, seed, episodes):
    print(f"{name}: {f'cost {cost:g} a call' if budget is None else f'budget {budget}'}")
    values, best = solve(cost, budget)
    optimum = values[0, -1].item()
    never, always = (solve(cost, budget, torch.full_like(best, call))[0][0, -1].item() for call in (False, True))
    there = " ".join(map(str, switch_set(best, budget))) or "no state"
    print(f"(1) the best switch calls in {there}: {optimum:.4f} (never {never:.4f}, always {always:.4f})", flush=True)
    begun = time.monotonic()
    switch, worth = learn(cost, budget, steps, seed)
    print(f"(2) {steps} steps of training in {time.monotonic() - begun:.0f} s")
    calls = switch.calls()
    there = " ".join(map(str, switch_set(calls, budget))) or "no state"
    print(f"(3) the learnt switch calls in {there}: {worth:.4f}, {worth / optimum:.1%} of the best")
    mean, rate, most, _ = play(calls, episodes, cost, budget)
    print(f"(4) {episodes} episodes: return {mean:.3f}, {rate:.2f} calls an episode, at most {most}")
    if budget is not None:
        _, _, most, turned_down = play(torch.ones_like(calls), episodes, cost, budget)
        print(f"(5) asked to call in every step: at most {most} calls, {turned_down} requests turned down", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cost", type=float, help="LONDI: c; without this and --budget: 0.05, then a budget of 2")
    parser.add_argument("--budget", type=int, help="LONDI-B: calls an episode")
    for option, default in {"steps": 12_000, "seed": 0, "episodes": 10_000}.items():
        parser.add_argument(f"--{option}", type=int, default=default, help=f"default: {default}")
    args = parser.parse_args(argv)
    both = args.cost is None and args.budget is None
    if both or args.cost is not None:
        show("LONDI", 0.05 if both else args.cost, None, args.steps, args.seed, args.episodes)
    if both or args.budget is not None:
        show("LONDI-B", 0.0, 2 if both else args.budget, args.steps, args.seed, args.episodes)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the network is so small that a second thread only hurts
    main()
