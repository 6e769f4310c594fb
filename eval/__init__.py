"""The tasks: semantic segmentation through mmseg, referring expressions, reasoning; and what they share."""
