"""Judged evaluation: a vision-language model answers fixed questions about edits, and has to prove itself first."""
