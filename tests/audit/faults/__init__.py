"""Faults on purpose. Each is one small patch; :mod:`detectors` has to catch every one."""
