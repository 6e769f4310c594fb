# What the eight benchmarks have in common; one file of cfg_ds/ adds a data set, its scale and its threshold.
# Data lie below $TEXTREGION_DATA (default: data). Model arguments: eval/model.py.
_base_ = []  # first, which says to mmengine that the imports below are Python's own
import inspect
import sys
from pathlib import Path

# What is registered in mmseg's registries lies in eval/, beside this folder: Config.fromfile finds and imports it, so
# that mmseg's own programs need nothing but a config.
root = str(Path(inspect.currentframe().f_code.co_filename).resolve().parents[1])
if root not in sys.path:
    sys.path.append(root)
del Path, root  # what the file leaves behind is the config
custom_imports = dict(imports=["eval.semantic"], allow_failed_imports=False)
default_scope = "mmseg"
work_dir = "out/mmseg"  # of mmseg's own programs; eval_semantic.py has --work-dir

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

# mmseg's inferencers put a loader of their own in the place of the first step; a benchmark leaves it out.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadOriginalImage"),
    dict(type="LoadLabelMap"),
    dict(type="PackOriginal"),
]

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=False,
    sampler=dict(type="ChosenImages"),
    dataset=dict(pipeline=test_pipeline),
)
test_evaluator = dict(type="JournalledIoU")
test_cfg = dict(type="BenchmarkLoop")

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10, log_metric_by_epoch=False),
    visualization=dict(type="SegVisualizationHook", draw=False, interval=1),
)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
log_processor = dict(by_epoch=False, window_size=10)
log_level = "INFO"
