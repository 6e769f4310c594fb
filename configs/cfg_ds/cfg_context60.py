# PASCAL Context val, 59 classes and background.
_base_ = "../base_config.py"

benchmark = dict(name="context60", prepare="pascal_context")
model = dict(classes="context60", probability_threshold=0.35)
test_dataloader = dict(
    dataset=dict(
        type="PascalContextDataset",
        data_root="{{$TEXTREGION_DATA:data}}/VOCdevkit/VOC2010",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
        ann_file="ImageSets/SegmentationContext/val.txt",
    )
)
