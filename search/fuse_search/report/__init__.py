"""A study told to people: the answer table, the report's files, and the status."""
