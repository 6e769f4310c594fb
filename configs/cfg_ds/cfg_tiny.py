# Scenes of the tiny world (textregion/tiny), drawn on first use: a test bed, no claim about photographs.
_base_ = "../base_config.py"
import os

classes = """
red shape; orange shape; yellow shape; green shape; blue shape; purple shape; pink shape; white shape; black shape;
grass; water; sand; sky; brick; wood; snow; stone
"""

benchmark = dict(name="tiny", prepare="tiny", scenes=40, size=256, first_seed=900_000)
model = dict(preset="tiny", classes="tiny", scale=(768, 256))
test_dataloader = dict(
    num_workers=0,
    dataset=dict(
        type="BaseSegDataset",
        data_root=f"{os.environ.get('TEXTREGION_DATA') or 'data'}/tiny_world",
        data_prefix=dict(img_path="images/val", seg_map_path="annotations/val"),
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo=dict(classes=tuple(" ".join(classes.split()).split("; "))),
    ),
)
del classes  # what the file leaves behind is the config
