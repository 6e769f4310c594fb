"""A benchmark of noise with given label maps, for the small models of tests/eval."""

import numpy as np

from eval.results import ROOT


def rooms(folder, write_image, labels, classes=("grass", "sky"), **dataset):
    """A benchmark of noise with these label maps (arrays); the path of its config."""
    for number, values in enumerate(labels):
        write_image(folder / f"data/images/{number}.png", values.shape)
        write_image(folder / f"data/labels/{number}.png", values)
    options = "".join(f"{key}={value!r}, " for key, value in dataset.items())
    (folder / "cfg_rooms.py").write_text(f"""
_base_ = {str(ROOT / "configs/base_config.py")!r}
benchmark = dict(name="rooms", prepare=None)
model = dict(type="SmallModel", classes={list(classes)!r})
test_dataloader = dict(num_workers=0, dataset=dict(type="BaseSegDataset", data_root={str(folder / "data")!r},
    data_prefix=dict(img_path="images", seg_map_path="labels"), img_suffix=".png", seg_map_suffix=".png", {options}
    metainfo=dict(classes={tuple(classes)!r})))
""")
    return folder / "cfg_rooms.py"


def bands(*labels):
    return np.repeat(np.array(labels, np.uint8), 10)[:, None].repeat(13, 1)
