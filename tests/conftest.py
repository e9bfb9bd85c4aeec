"""Beside the tests, so that pytest puts this folder on the import path."""

import os

# Before torch is imported: threads that spin while they wait slow a busy machine down severalfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
