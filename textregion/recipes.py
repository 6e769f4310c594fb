"""The switches in which the published pooling programs differ, under names (method 7.2)."""

from dataclasses import dataclass

from textregion.errors import InputError


@dataclass(frozen=True)
class PoolingRecipe:
    """The two switches in which the published CLIP programs differ (method 7.2). PE and SigLIP 2 ignore both.

    unit_values: pool v / ||v|| instead of v while global patches are removed.
    mlp_residual: add MLP(LN2(y)) to the out-projected sum y.
    """

    unit_values: bool
    mlp_residual: bool
    name: str = "own"

    @classmethod
    def named(cls, name: "str | PoolingRecipe") -> "PoolingRecipe":
        """One of RECIPES by name; a PoolingRecipe passes through. InputError for an unknown name."""
        if isinstance(name, cls):
            return name
        if not isinstance(name, str) or name not in RECIPES:
            raise InputError(f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
        return RECIPES[name]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        PoolingRecipe(unit_values=True, mlp_residual=True, name="demo"),
        PoolingRecipe(unit_values=False, mlp_residual=False, name="semantic"),
        PoolingRecipe(unit_values=True, mlp_residual=False, name="semantic-fp32"),
    )
}
