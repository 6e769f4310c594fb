"""The program TextRegionSegmenter.py: its command line, its jobs, what it writes."""
