"""Networks: branches cut into stages, joined by a topology, ending in a head for each task."""
