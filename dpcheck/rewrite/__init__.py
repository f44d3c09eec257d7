"""Fixes in the user's source: where a module was built, what to write there, and writing all of it or nothing."""
