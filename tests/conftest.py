"""Beside the tests, so that pytest puts this folder on the import path."""
