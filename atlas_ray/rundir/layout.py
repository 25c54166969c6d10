"""Paths of the files in a run directory, and which of them say that something is complete.

No other module spells these names. A run directory within another (a sweep's ``trials/0000`` and ``shared/select-0``,
``rounds/1/seed0/switch``) has the same layout below its own root.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

COMPLETION_MARKERS = {
    "run": "recipe.resolved.json",
    "collect": "trajectories/expert.jsonl",
    "annotations": "annotations/{}.jsonl",
    "scores": "annotations/scores/{}.json",
    "head": "annotations/distilled/head.json",
    "finetune": "checkpoints/{}/run.json",
    "model": "checkpoints/{}/config.json",
    "evaluate": "evaluation/atlas.json",
    "switch": "switch/policies.json",
    "rounds": "rounds.json",
    "own-rounds": "own-rounds.json",
    "trial": "trial.json",
    "report": "report.html",
    "tracking": ".tracked.json",
}
"""By what is complete: the file that says so. It is written after everything that it speaks of, and storage holds it
only after that, too. Stages look for it to know that they are done; ``{}`` stands for one name of many."""

_MARKERS = tuple(name.replace("{}", "*") for name in COMPLETION_MARKERS.values())
_RUN_WITHIN = r"((trials|shared)/[^/]+/|rounds/([^/]+/){2,3})?"
_REPLACED_WHOLE = re.compile(rf"{_RUN_WITHIN}checkpoints/[^/]+\.(state|train)/[^/]+|trials/[^/]+/state")
_OF_THIS_MACHINE = (".storage.json", ".here", ".ray", ".training", ".encoded")


CHECKPOINT_RECORD = PurePosixPath(COMPLETION_MARKERS["finetune"]).name
"""In a fine-tuned model's own directory: how it was made."""


def is_commit_marker(name: str) -> bool:
    """Whether a file says that something else is complete.

    Args:
        name: its path within a run directory, or within one of a sweep's.
    """
    return any(PurePosixPath(name).match(marker) for marker in _MARKERS)


def is_replaced_whole(name: str) -> bool:
    """Whether a directory of this path is a training state, which is only ever replaced as a whole."""
    return bool(_REPLACED_WHOLE.fullmatch(name))


def is_of_this_machine(entry: str) -> bool:
    """Whether an entry of this name is of no use on another machine: half-written, or made again where it is needed."""
    return entry in _OF_THIS_MACHINE or (entry.startswith(".") and entry.endswith((".tmp", ".old")))


class RunLayout:
    """Paths in the run directory ``root``; without one they are relative to it."""

    def __init__(self, root: str | Path = "") -> None:
        self.root = Path(root)

    def _marker(self, what: str, *names: str) -> Path:
        return self.root / COMPLETION_MARKERS[what].format(*names)

    # -- of the run

    @property
    def recipe(self) -> Path:
        """The resolved recipe. Its presence makes a directory a run."""
        return self._marker("run")

    @property
    def metrics(self) -> Path:
        """Numbers over time, one JSON row each."""
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """What was retried, dropped or recovered, and why."""
        return self.root / "events.jsonl"

    @property
    def model_hashes(self) -> Path:
        """SHA-256 of the weights that relative names of models held."""
        return self.root / "models.json"

    @property
    def environment_versions(self) -> Path:
        """In which versions the environments are played."""
        return self.root / "environments.json"

    @property
    def logs(self) -> Path:
        """Directory of the log files of all processes."""
        return self.root / "logs"

    @property
    def results(self) -> Path:
        """Scores of both methods."""
        return self.root / "results.json"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self._marker("report")

    def comparison(self, other: str) -> Path:
        """This run beside another one of that name."""
        return self.root / f"compare-{other}.html"

    @property
    def sync_state(self) -> Path:
        """What this machine knows of the run's storage."""
        return self.root / ".storage.json"

    @property
    def tracking_state(self) -> Path:
        """How far the metrics have gone to trackers."""
        return self._marker("tracking")

    @property
    def gateway_store(self) -> Path:
        """Sessions of a gateway, and what they have spent."""
        return self.root / "gateway" / "sessions.sqlite"

    @property
    def here(self) -> Path:
        """The file by which a process tells that this directory is the driver's own."""
        return self.root / ".here"

    # -- trajectories and annotations

    @property
    def expert(self) -> Path:
        """The expert trajectories."""
        return self._marker("collect")

    @property
    def expert_part(self) -> Path:
        """Expert trajectories while they are being collected."""
        return self.root / "trajectories" / ".expert.part.jsonl"

    @property
    def source(self) -> Path:
        """Which file or dataset the expert trajectories were read from: commit, sizes, hashes."""
        return self.root / "trajectories" / "source.json"

    @property
    def collecting_switch(self) -> Path:
        """Directory of the switch whose episodes are collected, as it was when that began."""
        return self.root / "trajectories" / "switch"

    @property
    def collecting_usage(self) -> Path:
        """What it took to collect a switch's episodes."""
        return self.root / "trajectories" / "usage.json"

    @property
    def verbatim(self) -> Path:
        """Words of imported trajectories that an export repeats exactly."""
        return self.root / "imported-words.jsonl"

    @property
    def imported_records(self) -> Path:
        """Records of agents that call tools, as the files that were imported have them."""
        return self.root / "imported-records.jsonl"

    @property
    def trajectories_dir(self) -> Path:
        """Directory of all trajectories."""
        return self.expert.parent

    @property
    def annotations_dir(self) -> Path:
        """Directory of all annotations and of the numbers behind them."""
        return self.root / "annotations"

    def annotations(self, selector: str) -> Path:
        """The annotations of a selector."""
        return self._marker("annotations", selector)

    @property
    def pairs_dir(self) -> Path:
        """Directory of all pairs of turns."""
        return self.root / "pairs"

    def pairs(self, name: str) -> Path:
        """The pairs that a selector has made, or that were read from a file under that name."""
        return self.pairs_dir / f"{name}.jsonl"

    @property
    def pair_names(self) -> list[str]:
        """Names under which pairs are there, sorted."""
        return sorted(path.stem for path in self.pairs_dir.glob("*.jsonl") if not path.name.startswith("."))

    @property
    def selectors(self) -> list[str]:
        """Names of the selectors whose annotations are there, sorted."""
        found = self.annotations_dir.glob("*.jsonl")
        return sorted(path.stem for path in found if not path.name.startswith("."))

    def scores(self, name: str) -> Path:
        """The numbers or answers behind a selection, a row a trajectory."""
        return self.annotations_dir / "scores" / f"{name}.jsonl"

    def selection_compute(self, selector: str) -> Path:
        """What it took to make a selector's annotations."""
        return self.annotations_dir / "compute" / f"{selector}.json"

    @property
    def head(self) -> Path:
        """The numbers of the head that predicts marks, and where it is from."""
        return self._marker("head")

    @property
    def head_tensors(self) -> Path:
        """The arrays of that head."""
        return self.head.with_suffix(".safetensors")

    def encoded(self, key: str) -> Path:
        """Features of some trajectories, until a head is fitted to them."""
        return self.annotations_dir / "scores" / ".encoded" / f"{key}.safetensors"

    @property
    def start_after(self) -> Path:
        """How the untuned model does behind marked steps."""
        return self._marker("scores", "start-after")

    # -- trained models

    @property
    def checkpoints(self) -> Path:
        """Directory of all checkpoints."""
        return self.root / "checkpoints"

    def checkpoint(self, arm: str, seed: int) -> Path:
        """Directory of a fine-tuned model."""
        return self.checkpoints / f"{arm}-s{seed}"

    def checkpoint_record(self, arm: str, seed: int) -> Path:
        """How a fine-tuned model was made."""
        return self._marker("finetune", self.checkpoint(arm, seed).name)

    @property
    def checkpoint_records(self) -> list[Path]:
        """How the models were made that lie here, sorted by name."""
        return sorted(self.checkpoints.glob(f"*/{CHECKPOINT_RECORD}"))

    @property
    def training_scratch(self) -> Path:
        """Directory of what fine-tuning needs on disk until all models are there."""
        return self.checkpoints / ".training"

    def training_states(self, arm: str, seed: int) -> Path:
        """Directory of the states from which the training of a model goes on."""
        return self.checkpoints / f".{arm}-s{seed}.state"

    def best_weights(self, arm: str, seed: int) -> Path:
        """Directory of the weights that were best in validation so far."""
        return self.checkpoints / f".{arm}-s{seed}.best"

    def switch_checkpoint(self, terms: str, seed: int | None = None) -> Path:
        """Directory of a switch, a fitted one without a seed; ``terms`` are ``cost0.05``, ``classifier0.25`` etc."""
        return self.checkpoints / (f"switch-{terms}" if seed is None else f"switch-{terms}-seed{seed}")

    @property
    def switch_checkpoints(self) -> list[Path]:
        """Directories of the trained switches that lie here, sorted by name."""
        return [path.parent for path in sorted(self.checkpoints.glob("switch-*-seed*/config.json"))]

    @property
    def switch_rules(self) -> list[Path]:
        """Directories of the fitted switches that lie here, sorted by name."""
        return sorted({p.parent for p in self.checkpoints.glob("switch-*/config.json")} - {*self.switch_checkpoints})

    # -- scores

    @property
    def evaluation_episodes(self) -> Path:
        """Episodes of the evaluation, a row each."""
        return self.root / "evaluation" / "episodes.jsonl"

    @property
    def evaluation_judged(self) -> Path:
        """Episodes by which a round of a model's own runs is judged, a row each."""
        return self.root / "evaluation" / "judged.jsonl"

    @property
    def atlas_scores(self) -> Path:
        """Scores of the base model and of every arm."""
        return self._marker("evaluate")

    @property
    def switch_selection(self) -> Path:
        """Episodes that the switch stage played before the test."""
        return self.root / "switch" / "selection.jsonl"

    def switch_training(self, name: str) -> Path:
        """Training episodes, step by step: ``fitting``, of rules and signals; ``random``, which switches learn from."""
        return self.root / "switch" / f"{name}.jsonl"

    @property
    def switch_episodes(self) -> Path:
        """Test episodes of the switch stage, a row each."""
        return self.root / "switch" / "episodes.jsonl"

    @property
    def switch_logs(self) -> Path:
        """Transitions of logs, or of random calls, that switches learn from."""
        return self.root / "switch" / "logs.parquet"

    @property
    def switch_logs_note(self) -> Path:
        """Which logs those are of."""
        return self.root / "switch" / "logs.json"

    @property
    def switch_estimates(self) -> Path:
        """What policies are worth by logs alone."""
        return self.root / "switch" / "estimates.json"

    @property
    def switch_usage(self) -> Path:
        """What calls of the models take."""
        return self.root / "switch" / "usage.json"

    @property
    def switch_policies(self) -> Path:
        """Scores of every policy of the switch stage."""
        return self._marker("switch")

    @property
    def switch_replay(self) -> Path:
        """One episode of a switch, step by step."""
        return self.root / "switch" / "replay.json"

    # -- rounds

    @property
    def rounds(self) -> Path:
        """Rounds of switching and tuning: their scores, and which is kept."""
        return self._marker("rounds")

    @property
    def own_rounds(self) -> Path:
        """Rounds of a model that learns from its own runs: their scores, and which is kept."""
        return self._marker("own-rounds")

    @property
    def switch_judged(self) -> Path:
        """Episodes by which a round of a switch is judged."""
        return self.root / "switch" / "judged.jsonl"

    def round_part(self, number: int, seed: int, name: str) -> RunLayout:
        """The run directory of one part of a round, for one training seed."""
        return RunLayout(self.root / "rounds" / str(number) / f"seed{seed}" / name)

    def deepthink_episodes(self, batch: int) -> RunLayout:
        """A run directory of episodes that DEEPTHINK plays alone, for all rounds and seeds."""
        return RunLayout(self.root / "rounds" / "deepthink" / str(batch))

    # -- sweeps

    @property
    def sweep_json(self) -> Path:
        """The trials of a sweep and what became of them."""
        return self.root / "sweep.json"

    @property
    def sweep_csv(self) -> Path:
        """The same as a table."""
        return self.root / "sweep.csv"

    def trial(self, number: int) -> RunLayout:
        """The run directory of a trial."""
        return RunLayout(self.root / "trials" / f"{number:04d}")

    def shared(self, name: str) -> RunLayout:
        """A run directory whose files several trials share."""
        return RunLayout(self.root / "shared" / name)

    @property
    def trial_result(self) -> Path:
        """What became of a trial, in its own directory."""
        return self._marker("trial")

    @property
    def trial_state(self) -> Path:
        """Directory of what the training of a trial goes on from, in its own directory."""
        return self.root / "state"

    @property
    def trial_history(self) -> Path:
        """The evaluations of a trial of the switch, in its own directory."""
        return self.root / "history.json"
