"""Boxes and points that answers name: reading them from text, and drawing them on pictures."""
