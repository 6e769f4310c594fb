"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg (spec 10)."""
