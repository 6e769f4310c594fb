"""Box recognition on LVIS: name every given box, out of all names of the data set (RegionSpot method 3)."""
