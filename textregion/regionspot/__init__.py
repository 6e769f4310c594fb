"""RegionSpot ("Recognize Any Regions", arXiv 2311.01373): a small trained head that recognises boxes.

It joins SAM's token of a box with CLIP's feature map into one vector comparable with text: the learned sibling of
TextRegion's training-free tokens. Sections: docs/regionspot.md. Axes besides types.py:

    B  images of a batch    n  boxes of an image (the largest count of a batch)    K  class names
    T  width of SAM's token (256)    L  tokens of CLIP's map, class token first    D  CLIP's width    E  joint width
"""
