"""A study told to people: the answer table, the report's files, and the status."""

from .answer import Answer, Line, answer
from .files import write_report
from .status import status
from .table import print_answer

__all__ = ["Answer", "Line", "answer", "print_answer", "status", "write_report"]
