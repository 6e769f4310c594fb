"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg (method 10)."""
