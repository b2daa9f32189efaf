"""Helpers for tensors, devices and time."""
