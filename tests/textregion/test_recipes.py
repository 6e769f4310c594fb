"""The published pooling recipes by name."""

import pytest

from textregion.errors import InputError
from textregion.pooling import RECIPES, PoolingRecipe


def test_recipes_are_the_published_ones():
    switches = {name: (r.unit_values, r.mlp_residual) for name, r in RECIPES.items() if not r.further_terms}
    assert switches == {"demo": (True, True), "semantic": (False, False), "semantic-fp32": (True, False)}
    own = PoolingRecipe(False, True, "own")
    assert PoolingRecipe.named(own) is own
    assert PoolingRecipe.named("demo") is RECIPES["demo"]
    with pytest.raises(InputError, match="'fancy'; expected one of demo, semantic, semantic-fp32"):
        PoolingRecipe.named("fancy")
