"""Measuring anchors, experts and merged models."""
