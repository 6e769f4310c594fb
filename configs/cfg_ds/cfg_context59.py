# PASCAL Context val, 59 classes; other pixels are ignored.
_base_ = "../base_config.py"

benchmark = dict(name="context59", prepare="pascal_context")
model = dict(classes="context59")
test_dataloader = dict(
    dataset=dict(
        type="PascalContextDataset59",
        data_root="{{$TEXTREGION_DATA:data}}/VOCdevkit/VOC2010",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
        ann_file="ImageSets/SegmentationContext/val.txt",
        pipeline={{_base_.test_pipeline}},
    )
)
