"""Training of the two models of the tiny world, as a program: python -m utils.tiny.train."""
