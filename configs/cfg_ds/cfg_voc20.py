# PASCAL VOC 2012 val, 20 classes; background pixels are ignored (the zero label is reduced).
_base_ = "cfg_voc21.py"

classes = """
aeroplane; bicycle; bird; boat; bottle; bus; car; cat; chair; cow; diningtable; dog; horse; motorbike; person;
pottedplant; sheep; sofa; train; tvmonitor
"""

benchmark = dict(name="voc20")
model = dict(
    classes="voc20", probability_threshold=0.0, scale=(2016, 672), concepts=dict(score_thresh=0.2, fallback_thresh=0.0)
)
# Leaving a class out makes mmseg map it to 255 and count the others from 0: the same as reducing it.
test_dataloader = dict(dataset=dict(metainfo=dict(classes=tuple(" ".join(classes.split()).split("; ")))))
del classes  # what the file leaves behind is the config
