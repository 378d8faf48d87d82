"""The table of arXiv 2604.18473, section 5."""

COLUMNS = ("overall", "knowledge", "reasoning", "chat", "math", "code", "tool_use", "safety")
PUBLISHED = {
    "retrain with mid-training": (50.5, 27.0, 31.8, 43.2, 55.9, 59.6, 45.9, 90.4),
    "BAR-5x7B, as released": (49.1, 28.4, 30.8, 38.7, 56.2, 49.9, 45.6, 94.0),
    "BAR, run 1": (48.8, 28.6, 30.6, 38.2, 56.5, 48.3, 45.5, 93.8),
    "retrain, post-training only": (47.8, 28.6, 31.3, 43.9, 48.7, 43.6, 45.3, 92.8),
    "BTX": (46.7, 23.9, 30.6, 36.4, 62.1, 32.1, 47.9, 93.9),
    "continued post-training": (45.3, 26.8, 29.4, 38.8, 45.0, 42.9, 40.9, 93.1),
    "dense merge, no mid-training": (36.9, 29.2, 30.0, 42.6, 32.9, 25.1, 19.7, 78.5),
    "dense merge after mid-training": (6.5, 0.0, 10.2, 5.9, 0.3, 0.4, 19.7, 9.1),
}
"""The published table, in percent: of `COLUMNS`."""
