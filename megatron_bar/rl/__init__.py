"""Reinforcement learning with verified rewards."""
