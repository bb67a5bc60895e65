"""What can be wrong with a user's data."""

from service.errors import OneSlateError


class DataError(OneSlateError, ValueError):
    """An input file is missing, unreadable or lacks a column, or the rows left do not make a data set.

    The message is one line that names the file and, where it applies, the line and the column.
    """
