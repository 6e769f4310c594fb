"""Loading for mmseg pipelines: the original image and label map; damaged files are reported, not raised."""

import numpy as np
from mmcv.transforms import BaseTransform

from eval.mm import TRANSFORMS, LoadAnnotations, PackSegInputs
from textregion.errors import InputError
from textregion.images import load_image


@TRANSFORMS.register_module()
class LoadOriginalImage(BaseTransform):
    """`img`: (H, W, 3) uint8 BGR at its own size; the method resizes by its own rule (method 1.2).

    A file that cannot be read gives one black pixel and the reason under `unreadable`.
    """

    def transform(self, results: dict) -> dict:
        """Adds img, img_shape, ori_shape."""
        try:
            image = load_image(results["img_path"])
        except InputError as error:
            results["unreadable"] = str(error)
            image = np.zeros((1, 1, 3), np.uint8)
        results["img"] = np.ascontiguousarray(image[..., ::-1])
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadLabelMap(LoadAnnotations):
    """mmseg's LoadAnnotations (zero-label reduction, class subsets); damaged files go under `unreadable`."""

    def transform(self, results: dict) -> dict:
        """Adds gt_seg_map."""
        path = results["seg_map_path"]
        try:
            results = super().transform(results)
        except (OSError, SyntaxError, ValueError) as error:
            results["unreadable"] = f"label map {path} cannot be read ({error})"
            return results
        shape = results["gt_seg_map"].shape
        if "unreadable" not in results and shape != results["ori_shape"]:
            results["unreadable"] = f"label map {path} is of shape {shape}, its image {results['ori_shape']}"
        return results


@TRANSFORMS.register_module()
class PackOriginal(PackSegInputs):
    """mmseg's PackSegInputs, with the reason for a skipped image."""

    def __init__(self) -> None:
        super().__init__(
            meta_keys=("img_path", "seg_map_path", "ori_shape", "img_shape", "reduce_zero_label", "unreadable")
        )
