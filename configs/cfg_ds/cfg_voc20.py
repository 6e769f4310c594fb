# PASCAL VOC 2012 val, 20 classes; background pixels are ignored (the zero label is reduced).
_base_ = "../base_config.py"

classes = """
aeroplane; bicycle; bird; boat; bottle; bus; car; cat; chair; cow; diningtable; dog; horse; motorbike; person;
pottedplant; sheep; sofa; train; tvmonitor
"""

benchmark = dict(name="voc20", prepare=None)
model = dict(classes="voc20")
test_dataloader = dict(
    dataset=dict(
        type="PascalVOCDataset",
        data_root="{{$TEXTREGION_DATA:data}}/VOCdevkit/VOC2012",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
        # Leaving a class out makes mmseg map it to 255 and count the others from 0: the same as reducing it.
        metainfo=dict(classes=tuple(" ".join(classes.split()).split("; "))),
    )
)
del classes  # what the file leaves behind is the config
