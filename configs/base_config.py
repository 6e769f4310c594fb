# What the eight benchmarks have in common; one file of cfg_ds/ adds a data set, its scale and its threshold.
# Data lie below $TEXTREGION_DATA (default: data). Model arguments: eval/model.py.
default_scope = "mmseg"

model = dict(
    type="TextRegionSegmenter",
    preset="clip-vit-b16",
    recipe="auto",  # semantic for OpenAI's weights, semantic-fp32 for others, as published
    names="published",  # or "natural": spelling of the prompt words
    probability_threshold=0.0,
    dense_fallback="auto",  # CLIP families only
    scale=(2016, 672),
    points_per_side=16,
    antialias=False,  # as in the published environment
    mask_size="original",
)

test_pipeline = [dict(type="LoadOriginalImage"), dict(type="LoadLabelMap"), dict(type="PackOriginal")]

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=False,
    sampler=dict(type="ChosenImages"),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(pipeline=test_pipeline),
)
test_evaluator = dict(type="JournalledIoU")
test_cfg = dict(type="TestLoop")

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10, log_metric_by_epoch=False),
    visualization=dict(type="SegVisualizationHook", draw=False, interval=1),
)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
log_processor = dict(by_epoch=False, window_size=10)
log_level = "INFO"
