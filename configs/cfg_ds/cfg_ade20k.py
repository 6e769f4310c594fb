# ADE20K (SceneParse150) validation, 150 classes; mmseg's data set reduces the zero label.
_base_ = "../base_config.py"
import os

benchmark = dict(name="ade20k", prepare=None)
model = dict(classes="ade20k", concepts=dict(score_thresh=0.3, fallback_thresh=0.0))
test_dataloader = dict(
    dataset=dict(
        type="ADE20KDataset",
        data_root=f"{os.environ.get('TEXTREGION_DATA') or 'data'}/ade/ADEChallengeData2016",
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
    )
)
