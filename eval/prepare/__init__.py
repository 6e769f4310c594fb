"""Converters from the benchmarks' published files to what mmseg reads: `python -m eval.prepare --help`."""
