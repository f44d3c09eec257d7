"""Attacks on the engine: is what it releases what it claims to release?"""
