# PASCAL Context val, 59 classes and background.
_base_ = "../base_config.py"
import os

benchmark = dict(name="context60", prepare="pascal_context")
model = dict(classes="context60", probability_threshold=0.35, concepts=dict(score_thresh=0.3, fallback_thresh=0.1))
test_dataloader = dict(
    dataset=dict(
        type="PascalContextDataset",
        data_root=f"{os.environ.get('TEXTREGION_DATA') or 'data'}/VOCdevkit/VOC2010",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
        ann_file="ImageSets/SegmentationContext/val.txt",
    )
)
