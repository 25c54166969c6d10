"""Validation while a model is trained: the best weights are kept, patience ends it, and a kill changes nothing."""

import time
from dataclasses import replace

import pytest
import torch
from finetune_examples import KilledError, random_examples, tiny, trained, weights, with_adapters

EXAMPLES = random_examples(12, seed=30)


class Watcher:
    """Validations with scores that are fixed by the step, and what was kept of them."""

    def __init__(self, scores, kill=None, kept=None):
        self.scores, self.kill, self.step, self.training = scores, kill, 0, []
        self.kept = [] if kept is None else kept

    def on_step(self, progress):
        self.step = progress.step
        if self.step == self.kill:
            raise KilledError

    def validate(self, model):
        self.training.append(model.training)
        return self.scores[self.step]

    def keep(self, model):
        self.kept.append((self.step, weights(model).clone()))


def watched(path, scores, every=3, patience=None, kill=None, kept=None, steps=10, **given):
    watcher = Watcher(scores, kill, kept)
    hooks = {"on_step": watcher.on_step, "validate": watcher.validate, "keep": watcher.keep}
    validation = {"every": every, "patience": patience}
    return watcher, *trained(path, EXAMPLES, steps=steps, validation=validation, **hooks, **given)


def test_the_weights_of_the_best_step_are_kept(tmp_path):
    watcher, model, report = watched(tmp_path / "a", {3: 0.2, 6: 0.9, 9: 0.5, 10: 0.9})
    assert report.scores == [(3, 0.2), (6, 0.9), (9, 0.5), (10, 0.9)], "the last step is validated too"
    assert report.best == 6, "the first of equals"
    assert [step for step, _ in watcher.kept] == [3, 6]
    after = {}

    def look(progress):
        after[progress.step] = weights(other).clone()

    other = tiny()
    trained(tmp_path / "b", EXAMPLES, steps=10, model=other, on_step=look)
    assert torch.equal(watcher.kept[-1][1], after[6])
    assert torch.equal(weights(model), after[10])


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    scores = {2: 0.1, 4: 0.6, 6: 0.5, 8: 0.6, 10: 0.9, 12: 1.0}
    watcher, _, report = watched(tmp_path / "two", scores, every=2, patience=2, steps=12)
    assert (report.steps, report.best, watcher.step) == (8, 4, 8)
    watcher, _, report = watched(tmp_path / "three", scores, every=2, patience=3, steps=12)
    assert (report.steps, report.best) == (12, 12)
    _, _, report = watched(tmp_path / "none", {**scores, 12: 0.0}, every=2, steps=12)
    assert (report.steps, report.best) == (12, 10)


@pytest.mark.parametrize(
    "kill", [pytest.param([5], marks=pytest.mark.slow), [6], [7, 9], pytest.param([1, 8], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("patience", [None, 2])
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, kill, patience):
    scores = {3: 0.2, 6: 0.9, 9: 0.5, 12: 0.4, 14: 0.3}
    given = {"patience": patience, "steps": 14}
    whole, whole_model, whole_report = watched(tmp_path / "whole", scores, **given)
    kept = []
    for step in kill:
        with pytest.raises(KilledError):
            watched(tmp_path / "cut", scores, kill=step, kept=kept, **given)
    _, model, report = watched(tmp_path / "cut", scores, kept=kept, **given)
    assert replace(report, seconds=0.0) == replace(whole_report, seconds=0.0)
    assert report.steps == (12 if patience else 14)
    assert torch.equal(weights(model), weights(whole_model))
    assert kept[-1][0] == whole.kept[-1][0] == report.best
    assert torch.equal(kept[-1][1], whole.kept[-1][1])


def test_validation_sees_no_dropout_and_changes_no_training(tmp_path):
    def adapted():
        return with_adapters(tiny(), dropout=0.3)

    watcher, model, _ = watched(tmp_path / "a", dict.fromkeys((3, 6, 9, 10), 0.5), model=adapted())
    plain, _ = trained(tmp_path / "b", EXAMPLES, steps=10, model=adapted())
    assert watcher.training == [False] * 4
    assert torch.equal(weights(model), weights(plain))


def test_the_time_of_validation_is_left_out(tmp_path):
    def slow(model):
        time.sleep(0.2)
        return 0.0

    start = time.perf_counter()
    _, report = trained(tmp_path, EXAMPLES, steps=4, validation={"every": 1}, validate=slow)
    assert report.seconds <= time.perf_counter() - start - 0.8


def test_without_validation_nothing_is_validated(tmp_path):
    watcher = Watcher({})
    _, report = trained(tmp_path, EXAMPLES, steps=4, validate=watcher.validate, keep=watcher.keep)
    assert (report.scores, report.best, watcher.training, watcher.kept) == ([], None, [], [])
