"""The method: types, images, tiling, masks, backbones, tokens, text, post-processing. Knows no task."""
