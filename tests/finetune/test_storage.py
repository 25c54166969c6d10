"""A disk that is full: one clear line, nothing half-written under a good name, and what was saved is whole."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetune_examples import random_examples, tiny, trained, weights
from safetensors import SafetensorError

from atlas_ray.errors import StorageError
from atlas_ray.finetune import state
from atlas_ray.finetune.team import Team


def refuse(*_args, **_given):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_state_that_cannot_be_written_leaves_the_last_good_one(tmp_path, monkeypatch):
    examples = random_examples(8, seed=12)

    def full_from(progress):
        if progress.step == 5:
            monkeypatch.setattr(state, "save_file", refuse)

    with pytest.raises(StorageError, match="No space left on device"):
        trained(tmp_path / "cut", examples, on_step=full_from)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "cut").iterdir() if not p.name.startswith(".")] == ["00000004"]
    seen = []
    model, _ = trained(tmp_path / "cut", examples, on_step=lambda p: seen.append(p.step))
    assert seen == [5, 6, 7, 8, 9]
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["00000008"], "and clears up behind it"
    assert torch.equal(weights(model), weights(trained(tmp_path / "whole", examples)[0]))


def test_a_state_whose_last_file_cannot_be_written_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "write_json", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(StorageError, match="No space left on device"):
        state.save_state(tmp_path, model, optimizer, Team(), False, {"step": 2})
    assert state.load_state(tmp_path, model, optimizer, Team()) is None


SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
from finetune_examples import TOKENIZER, random_examples, tiny, trained, trajectory, weights
from atlas_ray.errors import StorageError
from atlas_ray.finetune import output, run
from atlas_ray.models.loading import load_model
from atlas_ray.recipe import Recipe
from atlas_ray.trajectory import write_trajectories

root, said = Path(sys.argv[1]), {}
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)

def full(size=20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

def empty():
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

def names(path):
    return sorted(p.name for p in path.iterdir())

def refused(name, work):
    full()
    try:
        work()
    except StorageError as error:
        said[name] = str(error)
    finally:
        empty()

tiny().save_pretrained(root / "base")
TOKENIZER.save_pretrained(root / "base")
recipe = Recipe.model_validate({
    "name": "full",
    "unknown_share": 1.0,
    "collect": {"levels": {"GoToLocalS5N2": 3}},
    "select": {"selectors": ["value"]},
    "finetune": {"base": str(root / "base"), "arms": [{"selector": "value", "anchor": 0.5}], "workers": 0},
})
about = json.loads((root / "about.json").read_text())

examples = random_examples(8, seed=12)
try:
    trained(root / "state", examples, on_step=lambda p: full() if p.step == 3 else None)
except StorageError as error:
    said["state"] = str(error)
empty()
said["states"] = [name for name in names(root / "state") if not name.startswith(".")]
seen = []
model, _ = trained(root / "state", examples, on_step=lambda p: seen.append(p.step))
said["resumed"] = seen
said["as if never full"] = torch.equal(weights(model), weights(trained(root / "whole", examples)[0]))

refused("model", lambda: output.write_model(root / "out" / "model", tiny(), TOKENIZER, recipe, about))
said["models"] = names(root / "out")
output.write_model(root / "out" / "model", tiny(), TOKENIZER, recipe, about)
refused("again", lambda: output.write_model(root / "out" / "model", tiny(1), TOKENIZER, recipe, about))
said["models again"] = names(root / "out")
said["the old one"] = torch.equal(weights(load_model(str(root / "out" / "model"))), weights(tiny()))

write_trajectories(run.expert_file(root / "run"), [trajectory(str(i), 9) for i in range(9)])
refused("kept", lambda: run.prepare(recipe, root / "run", torch.device("cpu")))
said["scratch"] = names(run.scratch_dir(root / "run"))
run.prepare(recipe, root / "run", torch.device("cpu"))
said["scratch then"] = len(names(run.scratch_dir(root / "run")))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a process met whose files may suddenly not grow beyond 20 kB."""
    root = tmp_path_factory.mktemp("full")
    about = {"selector": "value", "anchor": 0.5, "seed": 3, "steps": 9, "best": None, "steps_share": 0.3}
    about |= {"examples": 2, "trajectories": 2, "data_sha256": "ab", "trained_tokens": 1, "context_tokens": 7}
    (root / "about.json").write_text(json.dumps(about))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[1] / "support",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["state", "model", "again", "kept"])
def test_a_really_full_disk_is_one_clear_line(said, name):
    assert "could not be written (" in said[name] and "File too large" in said[name]
    assert "\n" not in said[name]


def test_a_really_full_disk_leaves_the_last_good_state(said):
    assert said["states"] == ["00000002"]
    assert said["resumed"] == [3, 4, 5, 6, 7, 8, 9]
    assert said["as if never full"]


def test_a_really_full_disk_leaves_no_half_of_a_model_and_the_old_one_whole(said):
    assert said["models"] == []
    assert said["models again"] == ["model"]
    assert said["the old one"]


def test_a_really_full_disk_leaves_no_half_of_what_the_base_says(said):
    assert said["scratch"] == ["tokens"]
    assert said["scratch then"] == 2
