"""The embedded tiny world: drawn scenes with known masks and names, and two tiny models trained on them.

A test bed and a demo. What the models do here says nothing about photographs.
"""
