"""From a series to one of the requests behind it.

Exemplars are part of OpenMetrics, which Prometheus asks for; the plain text format leaves them out.
"""

import structlog

_MOST_CHARACTERS = 128  # of all names and values together, by the OpenMetrics specification
_NAMES = ("request_id", "trace_id")


def exemplar() -> dict[str, str] | None:
    """Labels that name the request which is being answered, as far as they fit.

    An id that is too long is left out rather than cut: half of one finds nothing.
    """
    bound = structlog.contextvars.get_contextvars()
    labels: dict[str, str] = {}
    room = _MOST_CHARACTERS
    for name in _NAMES:
        if name in bound and len(name) + len(bound[name]) <= room:
            labels[name] = bound[name]
            room -= len(name) + len(bound[name])
    return labels or None
