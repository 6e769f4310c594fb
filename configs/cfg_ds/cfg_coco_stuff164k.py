# COCO-Stuff 164k val2017, 171 classes.
_base_ = "../base_config.py"
import os

benchmark = dict(name="coco_stuff164k", prepare="coco_stuff164k")
model = dict(classes="coco_stuff164k", scale=(1334, 896), concepts=dict(score_thresh=0.2, fallback_thresh=0.0))
test_dataloader = dict(
    dataset=dict(
        type="COCOStuffDataset",
        data_root=f"{os.environ.get('TEXTREGION_DATA') or 'data'}/coco_stuff164k",
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
    )
)
