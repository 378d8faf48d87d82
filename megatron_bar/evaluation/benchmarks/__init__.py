"""Suites of tests, the toy's and the public ones (lm-eval), on a folder."""
