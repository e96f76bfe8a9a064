"""The release, read by setup.py without importing mmtr."""

__version__ = '0.1.0'
