"""What tests of the switch stage share."""

import pytest
from collecting_runs import save_model
from switch_models import SHAPES, small_switch

from atlas_ray.recipe.loading import Recipe


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A recipe with two untrained models and few steps."""
    folder = tmp_path_factory.mktemp("models")
    for name in SHAPES:
        save_model(name, folder)

    def recipe(workers=0, **switch):
        return Recipe.model_validate(
            {"name": "x", "workers": workers, "style": "action", "switch": small_switch(folder, **switch)}
        )

    return recipe
