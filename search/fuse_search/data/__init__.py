"""Sources of rows behind one record: `load` turns a `DataSpec` into a `Data`."""

from fuse_search.data.record import Data, Target
from fuse_search.data.sources import load

__all__ = ["Data", "Target", "load"]
