# COCO-Object: COCO-Stuff's maps of val2017 with the 80 things and background.
_base_ = "../base_config.py"
import os

classes = """
background; person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light; fire hydrant; stop
sign; parking meter; bench; bird; cat; dog; horse; sheep; cow; elephant; bear; zebra; giraffe; backpack; umbrella;
handbag; tie; suitcase; frisbee; skis; snowboard; sports ball; kite; baseball bat; baseball glove; skateboard;
surfboard; tennis racket; bottle; wine glass; cup; fork; knife; spoon; bowl; banana; apple; sandwich; orange;
broccoli; carrot; hot dog; pizza; donut; cake; chair; couch; potted plant; bed; dining table; toilet; tv; laptop;
mouse; remote; keyboard; cell phone; microwave; oven; toaster; sink; refrigerator; book; clock; vase; scissors; teddy
bear; hair drier; toothbrush
"""

benchmark = dict(name="coco_object", prepare="coco_object")
model = dict(classes="coco_object", probability_threshold=0.5, concepts=dict(score_thresh=0.5, fallback_thresh=0.4))
test_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_root=f"{os.environ.get('TEXTREGION_DATA') or 'data'}/coco_stuff164k",
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
        img_suffix=".jpg",
        seg_map_suffix="_instanceTrainIds.png",
        metainfo=dict(classes=tuple(" ".join(classes.split()).split("; "))),
    )
)
del classes  # what the file leaves behind is the config
