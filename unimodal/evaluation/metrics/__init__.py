"""Scores as pure functions: answers, captions, pictures."""
