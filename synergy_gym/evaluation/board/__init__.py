"""Boards: their files, rows, scores and ranking."""
