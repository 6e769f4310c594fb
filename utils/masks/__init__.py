"""Where regions come from: SAM 2's automatic masks (spec 9)."""
