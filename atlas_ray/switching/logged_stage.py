"""The switch stage's part that learns from logs: read, train each switch, and estimate all of them before any acts."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.encoders import make_encoder
from ..models.hashed_words import Vector
from ..rundir import files
from ..rundir.progress import duration
from .estimates import estimate, logged
from .fitted_values import Decide
from .logged_rules import decides, fit_to_logs, logged_rules
from .logs import FIELD, Logs, read_logs
from .policies import PolicySpec, learned_policies, save_rules
from .policy import CONFIG, SwitchPolicy
from .signals import CLASSIFIER, NOT_FITTED, Weights
from .stage_context import StageContext
from .tasks import switch_config
from .transitions import Transitions, split, write_transitions

Row = dict[str, Any]


def learn_from_logs(context: StageContext) -> list[Row]:
    """Train the switches of a recipe with ``switch.logs``, in this process, and estimate what they are worth.

    With the baseline ``classifier`` and ``rates`` it fits these too, where the logs say what QUICK would have done, and
    leaves in the context what they are set by.

    Writes ``switch/logs.parquet``, what is learned from; ``switch/logs.json``, which logs those were; the switches; and
    ``switch/estimates.json``, the rows returned, as docs/formats.md has them. What is there already is kept.

    Raises:
        InputError: the logs cannot be learned from, or are others than when the run began; names file, line and field.
    """
    settings, layout = context.settings, context.layout
    specs = learned_policies(settings, context.run_dir)
    done, fits = layout.switch_estimates.is_file(), CLASSIFIER in settings.baselines
    if done and not fits:
        return _done(context)
    signals, style = settings.signals, context.recipe.style
    read = read_logs(settings.logs, len(settings.models), settings.behaviour, bool(signals), style)
    _note(context, read)
    learned, held_out = split(read.episodes, settings.held_out)
    if not learned or not held_out:
        raise InputError(f"too few to learn from some and to hold out others: {read.words()}", field=FIELD)
    if fits:
        context.from_logs = fit_to_logs([e for e in learned if e.is_whole], context.say)
    rules = logged_rules(settings, context.from_logs)
    if not specs and not rules:
        what = "no step says whether QUICK would have done the same, so no classifier can be fitted"
        raise InputError(f"{what}: record with a gateway whose `shadow` is above 0", settings.logs[0], None, FIELD)
    if done:
        return _done(context)
    save_rules(rules, context.run_dir, context.say)
    encoder = make_encoder(settings.encoder, settings.features)
    assert settings.max_steps is not None
    known, judged = (Transitions.of(part, encoder, settings.max_steps, signals) for part in (learned, held_out))
    columns = known.columns(len(settings.models))
    if not layout.switch_logs.is_file():
        write_transitions(layout.switch_logs, columns)
    for spec in specs:
        for training in spec.seeds:
            _train(context, spec, training)
    rows = _estimates(context, specs, known, judged)
    if rules:
        weights = Weights(classifier=context.from_logs.doubts[CLASSIFIER].weights)
        about = (encoder, settings.max_steps, [*signals, CLASSIFIER], weights)
        parts = [Transitions.of([e for e in part if e.is_whole], *about) for part in (learned, held_out)]
        rows += _estimates_of_rules(rules, len(settings.models), *parts)
    files.write_json(layout.switch_estimates, rows)
    for row in rows:
        for line in words(row):
            context.say(f"  {line}")
    return rows


def _note(context: StageContext, read: Logs) -> None:
    """Say what the logs are, and refuse others than the run began with."""
    layout = context.layout
    digest = hashlib.sha256()
    for e in read.episodes:
        digest.update(repr((e.id, e.texts, e.actors, e.probabilities, e.outcome, e.success, e.money)).encode())
        if any(same is not None for same in e.same):
            digest.update(repr((e.actions, e.same)).encode())
    about = {
        "sha256": digest.hexdigest(),
        "episodes": len(read.episodes),
        "steps": read.steps,
        "dropped": dict(sorted(read.dropped.items())),
    }
    if layout.switch_logs_note.is_file():
        if files.read_json(layout.switch_logs_note)["sha256"] != about["sha256"]:
            what = "the logs are others than when the run began: give another --out"
            raise InputError(what, context.settings.logs[0], None, FIELD)
    else:
        files.write_json(layout.switch_logs_note, about)
        context.log.event("switch", "logs read", **about)
    context.say(f"  {read.words()}")


def _train(context: StageContext, spec: PolicySpec, training: int) -> None:
    directory = spec.directory(training)
    if (directory / CONFIG).is_file():
        return
    # Ray and torch are slow to import, and a second start needs neither
    from .logged_training import train_from_logs

    settings, who = context.settings, _who(spec.name, training)
    config = switch_config(settings, spec, NOT_FITTED)

    def note(row: Row) -> None:
        context.log.metric("switch", policy=who, **row)
        context.say(f"  {who}: step {row['step']}, about {duration(row['eta_seconds'])} left")

    seed = context.recipe.seed * 100 + training
    train_from_logs(directory, settings, config, context.layout.switch_logs, seed, note)


def _who(name: str, training: int | None) -> str:
    return name if training is None else f"{name} seed {training}"


def _estimates(context: StageContext, specs: list[PolicySpec], known: Transitions, judged: Transitions) -> list[Row]:
    """Of the logged behaviour, of each model alone, and of every learned switch."""
    settings, models = context.settings, len(context.settings.models)
    rows: list[Row] = [{"policy": "as logged", **logged(judged)}]
    for name, number in settings.single_models.items():
        rows.append({"policy": name, **estimate(partial(_always, number), models, None, judged, known)})
    for spec in specs:
        budget = None if spec.budget is None else int(spec.budget)
        for training in spec.seeds:
            decide = _decider(SwitchPolicy.load(spec.directory(training)))
            row = estimate(decide, models, budget, judged, known)
            rows.append({"policy": spec.name, "training": training, **row})
    return rows


def _estimates_of_rules(rules: list[PolicySpec], models: int, known: Transitions, judged: Transitions) -> list[Row]:
    width = known.encoded.shape[1]
    return [{"policy": rule.name, **estimate(decides(rule, width), models, None, judged, known)} for rule in rules]


def _done(context: StageContext) -> list[Row]:
    found: list[Row] = files.read_json(context.layout.switch_estimates)
    return found


def _always(number: int, features: Vector) -> NDArray[np.int64]:
    return np.full(len(features), number)


def _decider(policy: SwitchPolicy) -> Decide:
    return lambda features: policy.numbers(features).argmax(-1)


def words(row: Row) -> list[str]:
    """Lines on a row of the estimates for people, a warning in each but the first."""
    found = row.get("doubly_robust") or row["plain"]
    told = [f"{name} {span(found[name])}" for name in ("success", "calls", "money") if name in found]
    ess = f"{row['ess']:.0f} effective of {row['episodes']:,} held-out episodes"
    return [
        f"by the logs, {_who(row['policy'], row.get('training'))}: {', '.join(told)}; {ess}",
        *(f"  warning: {warning}" for warning in row.get("warnings", ())),
    ]


def span(amount: Row | None) -> str:
    """``0.61 [0.50, 0.71]``."""
    if amount is None:
        return "unknown"
    return f"{amount['mean']:.3g} [{amount['low']:.3g}, {amount['high']:.3g}]"
