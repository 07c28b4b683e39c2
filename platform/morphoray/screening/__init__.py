"""Screening without Ray or torch: libraries of molecules, effect scores, ranking."""
