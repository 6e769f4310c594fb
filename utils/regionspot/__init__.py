"""Training of the RegionSpot head, as a program: python -m utils.regionspot.train."""
