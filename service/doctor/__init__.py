"""What is wrong around the service, and what to do: each check looks at one thing, and fails alone.

It asks, and changes nothing: an embedded Redis that does not run is left alone rather than started, and the key by
which it finds out whether Redis may be written is gone again before anybody else is served.
"""

from service.doctor.around import diagnose, examine
from service.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "diagnose", "examine"]
