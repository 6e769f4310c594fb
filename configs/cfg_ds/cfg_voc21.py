# PASCAL VOC 2012 val, 20 classes and background.
_base_ = "../base_config.py"
import os

benchmark = dict(name="voc21", prepare=None)
model = dict(
    classes="voc21", probability_threshold=0.4, scale=(1008, 672), concepts=dict(score_thresh=0.5, fallback_thresh=0.4)
)
test_dataloader = dict(
    dataset=dict(
        type="PascalVOCDataset",
        data_root=f"{os.environ.get('TEXTREGION_DATA') or 'data'}/VOCdevkit/VOC2012",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
    )
)
