"""Replacements of layers that DP-SGD cannot train."""
