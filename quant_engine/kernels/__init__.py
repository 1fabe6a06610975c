"""Multiply by packed weights."""
