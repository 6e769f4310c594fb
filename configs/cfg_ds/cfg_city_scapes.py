# Cityscapes fine val, 19 classes.
_base_ = "../base_config.py"
import os

benchmark = dict(name="city_scapes", prepare="city_scapes")
model = dict(
    classes="city_scapes",
    scale=(2688, 1344),
    points_per_side=36,
    global_splits=(1, 2),
    concepts=dict(score_thresh=0.3, fallback_thresh=0.0),
)
test_dataloader = dict(
    dataset=dict(
        type="CityscapesDataset",
        data_root=f"{os.environ.get('TEXTREGION_DATA') or 'data'}/cityscapes",
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
    )
)
