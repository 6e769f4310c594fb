"""Reasoning segmentation: ReasonSeg (spec 11)."""
