"""Writes the fixtures of this folder from the complete golden folder. See README.md here.

python tests/golden/make_fixtures.py <complete golden folder>
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent
MANTISSA_BITS = 12  # of float32's 23; the rest is rounded away so that random weights compress
VARIANTS = {  # file: variants kept
    "clip_demo_B_coffee": ("base", "keep", "noalias", "noaa", "thrmed"),
    "clip_demo_A_astronaut": ("resize_remove", "resize_keep"),
    "clip_eval_B_coffee": ("base", "keep", "noalias", "noaa", "plain_thd", "hard", "city_scape", "fp16"),
    "pe_demo_B_coffee": ("rope_fixed", "rope_fixed_keep"),
    "pe_eval_B_coffee": ("rope_fixed",),
    "siglip2_demo_B_coffee": ("base", "keep", "thrmed"),
    "siglip2_eval_B_coffee": ("base", "plain_thd"),
}
ARRAYS = {  # arrays of a variant that are kept
    *("keep_masks1", "keep_masks2", "difference_score", "region_features", "seg_preds", "query_idx"),
    *("num_queries", "low_res_masks", "seg_logits_stride4"),
}
MODELS = ("clip_tiny_openai", "pe_tiny_meta", "siglip2_tiny")
AMG_RUNS = ("fuse", "nonoverlap_fuse", "tight")


def round_weights(values: np.ndarray) -> np.ndarray:
    """float32 rounded to MANTISSA_BITS, as four planes of bytes (4, n), which compress one by one."""
    drop = 23 - MANTISSA_BITS
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    bits = (bits + np.uint32(1 << (drop - 1))) >> np.uint32(drop) << np.uint32(drop)
    return bits.view(np.uint8).reshape(-1, 4).T.copy()


def write_model(source: Path, name: str) -> None:
    """The vision tower (and the two logit scalars) of a model as rounded byte planes."""
    state = load_file(source / f"{name}.safetensors")
    kept = {k: v for k, v in state.items() if k.startswith("visual.") or k.startswith("logit_")}
    planes = np.concatenate([round_weights(v) for v in kept.values()], 1)
    names = np.array(list(kept))
    shapes = np.array([",".join(map(str, v.shape)) for v in kept.values()])
    np.savez_compressed(HERE / f"{name}.npz", planes=planes, names=names, shapes=shapes)


def write_outputs(source: Path, name: str, variants: tuple[str, ...]) -> None:
    """A selection of one output file."""
    data = np.load(source / f"{name}.npz")
    kept = {k: data[k] for k in data.files if "/" not in k}
    for variant in variants:
        for key in data.files:
            if key.startswith(f"{variant}/") and key.split("/")[1] in ARRAYS:
                kept[key] = data[key]
    if "base/keep_masks1" in data.files:
        kept["base/keep_masks1"] = data["base/keep_masks1"]
    if not any(v.startswith("resize") for v in variants):
        kept.pop("resize_masks", None)
    np.savez_compressed(HERE / f"{name}.npz", **kept)


def indistinct(logits: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Logits with values that no step tells apart made equal; candidates in `exact` keep theirs in (0, 3).

    Steps look at logit > -1, > 0, > 1 and clamp(logit, 0, 3) of the survivors only.
    """
    steps = np.select([logits > 1, logits > 0, logits > -1], [2.0, 0.5, -0.5], -2.0)
    return np.where(exact, np.where(logits > 0, np.minimum(logits, 3), steps), steps).astype(np.float16)


def write_mask_generator(source: Path) -> None:
    """Timer of the mask generator, fed with candidates that compress."""
    data = np.load(source / "amg_D_chelsea.npz")
    kept = {
        key: data[key]
        for key in data.files
        if key.split("/")[0] in AMG_RUNS
        and not key.endswith(("raw_low_res", "sam_input", "fuse_bbox_iou", "cand_points"))
    }
    survivors = np.zeros(data["fuse/cand_iou"].shape, bool)  # all "whole", then "part", then "subpart"
    for run in AMG_RUNS:
        survivors[data[f"{run}/order_before_fuse"]] = True
    exact = survivors.reshape(3, -1)[::-1].T[..., None, None]
    kept["fuse/raw_low_res"] = indistinct(data["fuse/raw_low_res"], exact)
    np.savez_compressed(HERE / "amg_D_chelsea.npz", **kept)


def main() -> None:
    """Write everything."""
    source = Path(sys.argv[1])
    for name in MODELS:
        write_model(source, name)
    for name, variants in VARIANTS.items():
        write_outputs(source, name, variants)
    write_mask_generator(source)
    (HERE / "images").mkdir(exist_ok=True)
    (HERE / "sam2_cfg").mkdir(exist_ok=True)
    for name in (
        *("images/A_astronaut.png", "images/B_coffee.png", "inputs_B_coffee.npz", "inputs.json", "tiles.json"),
        *(
            "rescale_sizes.json",
            "amg.json",
            "fuse_cases.npz",
            "clip_tiny_openai.json",
            "pe_tiny.json",
            "siglip2_tiny.json",
        ),
        "sam2_cfg/sam2_tiny_random.yaml",
    ):
        shutil.copyfile(source / name, HERE / name)


if __name__ == "__main__":
    main()
