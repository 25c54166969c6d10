"""A disk that is full: one clear line, nothing half-written under a good name, and what was saved is whole."""

import errno
import resource
from contextlib import ExitStack, contextmanager

import pytest
import torch
from finetune_examples import TOKENIZER, random_examples, tiny, trained, trajectory, weights
from safetensors import SafetensorError

from atlas_ray.errors import StorageError
from atlas_ray.finetune import inputs, output, state
from atlas_ray.finetune.process_group import ProcessGroup
from atlas_ray.models.loading import load_model
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import write_trajectories

ABOUT = {
    "selector": "value",
    "anchor": 0.5,
    "seed": 3,
    "steps": 9,
    "best": None,
    "steps_share": 0.3,
    "examples": 2,
    "trajectories": 2,
    "data_sha256": "ab",
    "trained_tokens": 1,
    "context_tokens": 7,
}


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
        state.save_state(tmp_path, model, optimizer, ProcessGroup(), False, {"step": 2})
    assert state.load_state(tmp_path, model, optimizer, ProcessGroup()) is None


@contextmanager
def full_disk():
    """Within, no file of this process grows beyond 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(path):
    return sorted(p.name for p in path.iterdir())


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What is said, and what lies there, when files suddenly cannot grow beyond 20 kB."""
    root, found = tmp_path_factory.mktemp("full"), {}
    layout = RunLayout(root / "run")

    def refused(name, work):
        with full_disk(), pytest.raises(StorageError) as caught:
            work()
        found[name] = str(caught.value)

    tiny().save_pretrained(root / "base")
    TOKENIZER.save_pretrained(root / "base")
    recipe = Recipe.model_validate(
        {
            "name": "full",
            "unknown_share": 1.0,
            "collect": {"levels": {"GoToLocalS5N2": 3}},
            "select": {"selectors": ["value"]},
            "finetune": {"base": str(root / "base"), "arms": [{"selector": "value", "anchor": 0.5}], "workers": 0},
        }
    )

    examples = random_examples(8, seed=12)
    with ExitStack() as stack, pytest.raises(StorageError) as caught:
        trained(root / "state", examples, on_step=lambda p: p.step == 3 and stack.enter_context(full_disk()))
    found["state"] = str(caught.value)
    found["states"] = [name for name in names(root / "state") if not name.startswith(".")]
    seen = []
    model, _ = trained(root / "state", examples, on_step=lambda p: seen.append(p.step))
    found["resumed"] = seen
    found["as if never full"] = torch.equal(weights(model), weights(trained(root / "whole", examples)[0]))

    def write(seed):
        output.write_model(root / "out" / "model", tiny(seed), TOKENIZER, recipe, ABOUT)

    refused("model", lambda: write(0))
    found["models"] = names(root / "out")
    write(0)
    refused("again", lambda: write(1))
    found["models again"] = names(root / "out")
    found["the old one"] = torch.equal(weights(load_model(str(root / "out" / "model"))), weights(tiny()))

    write_trajectories(layout.expert, [trajectory(str(i), 9) for i in range(9)])
    refused("kept", lambda: inputs.prepare(recipe, root / "run", torch.device("cpu")))
    found["scratch"] = names(layout.training_scratch)
    inputs.prepare(recipe, root / "run", torch.device("cpu"))
    found["scratch then"] = len(names(layout.training_scratch))
    return found


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
