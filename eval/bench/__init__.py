"""Our formulations against the obvious ones: time, memory, difference, measured in the same run."""
