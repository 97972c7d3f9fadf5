"""Scores from verdicts, with their uncertainty."""
