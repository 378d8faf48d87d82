"""What runs in an engine's own process, and maybe in a Python environment of its own: imports nothing of this
project.

The folder is on that process's path, so its files import each other by their bare names; delivery.py alone is
also imported by the trainer.
"""
