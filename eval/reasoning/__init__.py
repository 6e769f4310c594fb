"""Reasoning segmentation: ReasonSeg (method 11)."""
