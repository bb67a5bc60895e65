"""What a benchmark raises."""

from service.errors import OneSlateError


class BenchError(OneSlateError):
    """The run would mean nothing: the service did not start, answered wrongly, or the generator could not keep up."""
