"""Who is compared with whom: the switches of a recipe, the baselines at their rates, and one row for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..cluster.remote_rundir import localize
from ..data.replies import summed
from ..data.results import interval, tenths
from ..errors import AtlasError
from ..recipe.loading import Switch
from ..recipe.switch import DOUBTS, MEASURED, budget_terms
from ..rundir import files
from ..rundir.layout import RunLayout
from .baselines import Always, EveryKth, Oracle, Random, Shadowed, Threshold, Triggers
from .calibration import Calibration
from .evaluate import Policy
from .fitted import EscalateOnce, doubting_switch
from .policy import CHOSEN, SwitchPolicy
from .spending import Unit

Row = dict[str, Any]
UNITS = {"flops": "FLOPs/episode", "seconds": "seconds/episode", "money": "money/episode"}


@dataclass(frozen=True)
class PolicySpec:
    """A policy of the comparison, with what it was trained or is played under.

    ``directories`` and ``seeds``: of a learned switch, one for each training seed. Else ``kind`` is ``always`` model
    ``action``, or a rule that calls it: ``random``, ``mixed`` (random, of all models but the first), ``every``,
    ``threshold`` (below ``tau``), ``triggers`` (with its ``critical`` actions), ``classifier``, ``verifier`` and
    ``escalate`` (below ``tau``, by ``weights``, the last ``after`` so many steps), ``oracle``; ``shadowed`` is
    ``always`` with QUICK asked too.
    ``budget`` is in ``unit``, money in dollars. ``run``: steps of a call.
    """

    name: str
    kind: str
    action: int = 0
    rate: float = 0.0
    tau: float = 0.0
    budget: float | None = None
    unit: Unit = "calls"
    run: int = 1
    cost: float | str | None = None
    average: float | None = None
    budget_fraction: float | None = None
    directories: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    critical: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    after: int = 0

    @property
    def saved_as(self) -> str | None:
        """The terms in the name of the directory of a rule that is kept as a switch; None for others."""
        if self.kind not in DOUBTS:
            return None
        limit = "" if self.limit is None else f"-{_limit_word(self).replace('=', '')}"
        return f"{self.kind}{_rate_word(self.rate)}{limit}"

    @property
    def limit(self) -> int | str | None:
        """Its budget as people say it: calls, or ``tokens=2000``; None without one."""
        if self.budget is None:
            return None
        return int(self.budget) if self.unit == "calls" else f"{self.unit}={self.budget:.12g}"

    @property
    def training_seeds(self) -> tuple[int | None, ...]:
        """Its training seeds; (None,) for what is not trained."""
        return self.seeds or (None,)

    def directory(self, training: int | None) -> Path:
        """Where the switch of a training seed lies."""
        assert training is not None
        return Path(self.directories[self.seeds.index(training)])

    def make_policy(self, seed: int, training: int | None = None) -> Policy:
        """The policy itself; ``seed`` is of what it draws."""
        if self.seeds:
            return SwitchPolicy.load(localize(str(self.directory(training))))
        if self.kind in DOUBTS:
            return doubting_switch(self.kind, self.weights, self.tau, self.action, self.budget, self.unit, self.run)
        rules: dict[str, Policy] = {
            "always": Always(self.action),
            "random": Random(self.rate, seed, self.action),
            "mixed": Random(self.rate, seed, self.action, first=1),
            "every": EveryKth(self.rate, self.action),
            "threshold": Threshold(self.tau, self.action),
            "triggers": Triggers(self.critical, self.action),
            "escalate": EscalateOnce(self.weights, self.tau, self.after, self.action),
            "oracle": Oracle(self.action),
            "shadowed": Shadowed(self.action),
        }
        return rules[self.kind]

    def cost_terms(self, settings: Switch) -> tuple[float, list[float] | None]:
        """c, and what a step of each model costs in it; None for what it really takes."""
        if self.cost == MEASURED:
            return settings.price, None
        return float(self.cost or 0), settings.weights


def single_model_policies(settings: Switch) -> list[PolicySpec]:
    """Every model throughout; the first is always-quick and the last always-deepthink."""
    return [PolicySpec(name, "always", action=n) for name, n in settings.single_models.items()]


def shadowed_by_quick(settings: Switch) -> PolicySpec:
    """DEEPTHINK throughout, while QUICK is asked too."""
    return PolicySpec("deepthink, shadowed by quick", "shadowed", action=len(settings.models) - 1)


def learned_policies(settings: Switch, run_dir: Path, resolved: dict[str, int] | None = None) -> list[PolicySpec]:
    """The switches to train, in the order of the recipe: costs, budgets, averages.

    Args:
        settings: of the recipe.
        run_dir: they go to its ``checkpoints/``.
        resolved: the budgets that percentages stand for; without it their switches are left out. One that is a budget
            already is not trained twice.
    """

    def switch(name: str, kind: str, **terms: Any) -> PolicySpec:
        where = tuple(str(RunLayout(run_dir).switch_checkpoint(kind, seed)) for seed in settings.seeds)
        terms["run"] = settings.run_length
        return PolicySpec(name, "learned", directories=where, seeds=tuple(settings.seeds), **terms)

    found = [switch(f"londi(c={_cost_word(c)})", f"cost{_cost_word(c)}", cost=c) for c in settings.costs]
    shares: dict[int, float | None] = {}
    other: list[PolicySpec] = []
    for given in settings.budgets:
        unit, amount = budget_terms(given)
        if isinstance(given, int):
            shares.setdefault(given, None)
        elif amount is not None:
            number = f"{amount:.12g}"
            other.append(switch(f"londi-b({unit}={number})", f"{unit}{number}", budget=amount, unit=unit))
        elif resolved is not None:
            n = resolved[given]
            shares[n] = shares.get(n) or percentage_as_fraction(given)
    found += [switch(f"londi-b(n={n})", f"budget{n}", budget=n, budget_fraction=share) for n, share in shares.items()]
    found += other
    found += [switch(f"londi-l(calls={a:g})", f"average{a:g}", average=a) for a in settings.averages]
    return found


def _cost_word(cost: float | str) -> str:
    return cost if isinstance(cost, str) else f"{cost:g}"


def percentage_as_fraction(percentage: str) -> float:
    """``"50%"`` -> 0.5."""
    return int(percentage.rstrip("%")) / 100


def resolve_budget(percentage: str, calls: float) -> int:
    """The budget that is this share of so many calls per episode, rounded up, at least 1."""
    # whole percents of a mean, without the rounding of floats: 10 % of 30 is 3, not 4
    return max(1, math.ceil(round(int(percentage.rstrip("%")) * calls / 100, 9)))


def lost_episode_seeds(rows: Sequence[Row]) -> frozenset[int]:
    """Episodes in which a model gave no answer to one policy: they are left out for all, so that they stay paired."""
    return frozenset(row["seed"] for row in rows if row.get("lost"))


def scorable_episodes(rows: Sequence[Row], who: str, without: Collection[int] | None = None) -> list[Row]:
    """The episodes that say something, less those of the seeds ``without`` (by default the lost ones of these rows).

    Raises:
        AtlasError: there is none; gives the last reason.
    """
    left_out = lost_episode_seeds(rows) if without is None else without
    kept = [row for row in rows if row["seed"] not in left_out]
    if not kept:
        why = [row["error"] for row in rows if row.get("lost")]
        raise AtlasError(
            f"{who}: no episode is left to score, each was lost{f'. The last one: {why[-1]}' if why else ''}"
        )
    return kept


def call_rate(rows: Sequence[Row]) -> float:
    """Share of the steps with a call, to two digits."""
    return round(sum(r["calls"] for r in rows) / sum(r["steps"] for r in rows), 2)


def baselines(
    settings: Switch, learned: Sequence[PolicySpec], rows: Sequence[Row], calibration: Calibration
) -> list[PolicySpec]:
    """The recipe's baselines: each at every switch's rate and under its budget, and at the recipe's rates.

    Triggers have no rate to be set to: they are played without a limit, and under every budget.

    Args:
        settings: of the recipe.
        learned: the switches.
        rows: their test episodes. A switch that hardly ever calls has no baselines but always-quick.
        calibration: what rules are set by.
    """
    last = len(settings.models) - 1
    wanted = [(call_rate([r for r in rows if r["policy"] == c.name]), c) for c in learned]
    found: dict[str, PolicySpec] = {}
    unlimited = PolicySpec("", "always")
    for kind in settings.baselines:
        if kind == "oracle":
            found[kind] = PolicySpec(kind, kind, action=last)
            continue
        if kind == "triggers":
            for under in [unlimited, *{c.limit: c for _, c in wanted if c.limit}.values()]:
                name = kind if under.limit is None else f"{kind}({_limit_word(under)})"
                terms: dict[str, Any] = {"budget": under.budget, "unit": under.unit}
                found[name] = PolicySpec(name, kind, last, critical=tuple(settings.critical), **terms)
            continue
        for rate, under in [*wanted, *((rate, unlimited) for rate in settings.rates)]:
            if rate:
                name = f"{kind}(p={_rate_word(rate)}{'' if under.limit is None else f', {_limit_word(under)}'})"
                calls = under.limit if isinstance(under.limit, int) else None
                runs = settings.run_length if kind in (*DOUBTS, "random") else 1
                begins = chance_of_a_run(rate, runs)
                terms = calibration.terms(kind, begins, calls)
                terms |= {"budget": under.budget, "unit": under.unit, "run": runs}
                terms["rate"] = begins if kind == "random" else rate
                found[name] = PolicySpec(name, kind, action=last, **terms)
    return list(found.values())


def random_twins(settings: Switch, rules: Sequence[PolicySpec], rows: Sequence[Row]) -> list[PolicySpec]:
    """Random calls, if the recipe has them, at the rates that rules which are kept have in these episodes.

    Less those that are among the rules.
    """
    only = settings.model_copy(update={"baselines": [b for b in settings.baselines if b == "random"], "rates": []})
    kept, names = [rule for rule in rules if rule.saved_as], {rule.name for rule in rules}
    return [twin for twin in baselines(only, kept, rows, Calibration()) if twin.name not in names]


def save_rules(rules: Sequence[PolicySpec], run_dir: Path, say: Callable[[str], None]) -> None:
    """Save the rules that are switches, to be served and collected with like learned ones, unless they are there."""
    for rule in rules:
        if rule.saved_as is None or (where := RunLayout(run_dir).switch_checkpoint(rule.saved_as)).is_dir():
            continue
        policy = rule.make_policy(0)  # it draws nothing
        assert isinstance(policy, SwitchPolicy)
        policy.save(where)
        say(f"  {rule.name} is kept as {where.relative_to(run_dir)}")


def chance_of_a_run(share: float, run: int) -> float:
    """With which a run of so many steps has to begin at every decision, so that calls are this share of the steps."""
    return share if run == 1 else share / (run - share * (run - 1))


def _rate_word(rate: float) -> str:
    return f"{rate:.2f}" if round(rate, 2) == rate else f"{rate:g}"


def _limit_word(policy_spec: PolicySpec) -> str:
    """Its budget in the name of a baseline."""
    return f"n={policy_spec.limit}" if policy_spec.unit == "calls" else f"{policy_spec.limit}"


def summarize_policy(
    policy_spec: PolicySpec, rows: Sequence[Row], unit: str, models: int = 2, without: Collection[int] | None = None
) -> Row:
    """One policy's row: ``success`` with its 95 % interval over episodes and training seeds, and means.

    Args:
        policy_spec: the policy.
        rows: its episodes; every training seed has played the same.
        unit: of the recipe.
        models: how many there are.
        without: seeds that are left out; by default those of its own lost episodes.

    Raises:
        AtlasError: no episode is left.
    """
    lost, replies = sum(bool(r.get("lost")) for r in rows), summed(c for r in rows for c in r.get("replies", ()))
    rows = scorable_episodes(rows, policy_spec.name, without)
    runs = [
        sorted((r for r in rows if r["training"] == member), key=lambda r: int(r["seed"]))
        for member in policy_spec.training_seeds
    ]
    success, *ci95 = interval([[r["success"] for r in run] for run in runs])

    def mean(name: str) -> float:
        return fmean(r[name] for r in rows)

    terms = {name: getattr(policy_spec, name) for name in ("budget", "cost", "average", "budget_fraction")}
    row = {
        "name": policy_spec.name,
        **{k: v for k, v in terms.items() if v is not None},
        **({"budget_unit": policy_spec.unit} if policy_spec.unit != "calls" else {}),
        **({"run_length": policy_spec.run} if policy_spec.run > 1 else {}),
        "success": success,
        "return": mean("return"),
        "ci95": ci95,
        "deepthink_share": sum(r["calls"] for r in rows) / sum(r["steps"] for r in rows),
        "deepthink_calls_per_episode": mean("calls"),
        "compute": mean(unit),
        "compute_unit": UNITS[unit],
        "seconds_per_episode": mean("seconds"),
        "budget_violations": sum(r["violations"] > 0 for r in rows),
        "episodes": len(rows),
    }
    if all("spent" in r for r in rows):
        row |= {f"{unit}_per_episode": fmean(r["spent"][unit] for r in rows) for unit in ("tokens", "usd")}
    if unit == "flops" and all("catch_up" in r for r in rows):
        row["catch_up"] = mean("catch_up")
    if (tenths := call_histogram(rows)) is not None:
        row["called_at"] = tenths
    if models > 2:
        row["calls_by_model"] = [fmean(r["calls_by_model"][n] for r in rows) for n in range(models)]
    row |= {name: value for name, value in (("lost_episodes", lost), ("replies", replies.row())) if value}
    if policy_spec.saved_as is not None:
        row["checkpoint"] = RunLayout().switch_checkpoint(policy_spec.saved_as).name
    if policy_spec.seeds:
        row["seeds"] = list(policy_spec.seeds)
        row["success_by_seed"] = [fmean(r["success"] for r in run) for run in runs]
        if (chosen := _chosen_success(policy_spec)) is not None:
            row["chosen_success"] = chosen
    return row


def _chosen_success(policy_spec: PolicySpec) -> float | None:
    """Success in the episodes that chose a switch's policies, where each of its trainings says so."""
    paths = [policy_spec.directory(seed) / CHOSEN for seed in policy_spec.seeds]
    found = [files.read_json(path) for path in paths if path.is_file()]
    told = [row["success"] for row in found if "success" in row]
    return fmean(told) if len(told) == len(paths) else None


def call_histogram(rows: Sequence[Row]) -> list[float] | None:
    """Share of all calls in each tenth of the episode, see :func:`atlas_ray.data.results.tenths`."""
    found = tenths((step, row["steps"]) for row in rows for step in row["called_at"])
    return None if found is None else list(found)
