# PASCAL Context val, 59 classes; other pixels are ignored.
_base_ = "cfg_context60.py"

benchmark = dict(name="context59")
model = dict(classes="context59", probability_threshold=0.0, concepts=dict(score_thresh=0.3, fallback_thresh=0.0))
test_dataloader = dict(dataset=dict(type="PascalContextDataset59"))
