"""A policy from text."""
