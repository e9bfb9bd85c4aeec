"""`python -m fuse_search`."""

from .cli import main

main()
