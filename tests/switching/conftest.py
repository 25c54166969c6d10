"""What tests of the switch stage share."""

import pytest
from switch_models import SHAPES, model, small_switch

from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A recipe with two untrained models and few steps."""
    folder = tmp_path_factory.mktemp("models")
    for name in SHAPES:
        model(name).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)

    def recipe(workers=0, **switch):
        return Recipe.model_validate(
            {"name": "x", "workers": workers, "style": "action", "switch": small_switch(folder, **switch)}
        )

    return recipe
