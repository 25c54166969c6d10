"""A run goes on, and is served, with the models that it was begun with: a relative name is another one elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from ..models.loading import fingerprint, note_base
from ..recipe.loading import Recipe
from ..recipe.of_run import RunPolicy, policy_of
from ..recipe.switch import ENCODERS
from ..rundir.files import read_json, write_json
from ..rundir.layout import RunLayout
from .table import STAGE


def models_and_encoders(recipe: Recipe, stage: str) -> Iterator[tuple[str, str]]:
    """(field, name) of every model and encoder that a stage runs here."""
    yield from STAGE[stage].models(recipe)
    if stage == "collect" and recipe.collect and recipe.collect.switch:
        policy = policy_of(recipe.collect.switch, "collect.switch")
        if policy.encoder is not None and policy.encoder not in ENCODERS:
            yield "collect.switch", policy.encoder
    if stage in ("switch", "rounds") and recipe.switch and recipe.switch.encoder not in ENCODERS:
        yield "switch.encoder", recipe.switch.encoder


def policy_models(policy: RunPolicy) -> Iterator[tuple[str, str]]:
    """(field, name) of the models and the encoder that a policy of a run needs, as that run's recipe names them."""
    return (named for named in models_and_encoders(policy.recipe, "switch") if named[1] in policy.names)


def record_models(recipe: Recipe, run_dir: Path, stage: str) -> None:
    """Note the weights of the directories that a stage which now begins names relatively; earlier notes stay."""
    noted = _noted(run_dir)
    names = {
        name for _, name in models_and_encoders(recipe, stage) if not Path(name).expanduser().is_absolute()
    } - noted.keys()
    found = {name: base["sha256"] for name in sorted(names) if "sha256" in (base := note_base(name))}
    if found:
        write_json(RunLayout(run_dir).model_hashes, noted | found)


def refuse_other_models(run_dir: Path, named: Iterable[tuple[str, str]]) -> None:
    """Refuse names of which the run knows other weights; what it has not noted, as older runs have not, is let through.

    Args:
        run_dir: a run directory.
        named: (field, name), as of :func:`models_and_encoders`.

    Raises:
        InputError: a directory is not here, or holds other weights; says where it was looked for.
    """
    noted = _noted(run_dir)
    for field, name in named:
        if name not in noted:
            continue
        here, back = Path(name).absolute(), "start where the run was begun, or bring that model here"
        if not here.is_dir():
            raise InputError(
                f"the run's model {name} is not here (looked for {here}): {back}", field=field, code="other_model"
            )
        if fingerprint(here) != noted[name]:
            raise InputError(
                f"{name} holds another model here ({here}) than the run was made with: {back}",
                field=field,
                code="other_model",
            )


def _noted(run_dir: Path) -> dict[str, str]:
    path = RunLayout(run_dir).model_hashes
    found: dict[str, str] = read_json(path) if path.is_file() else {}
    return found
