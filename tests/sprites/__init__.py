"""Tests of the sprite world."""
