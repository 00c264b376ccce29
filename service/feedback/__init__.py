"""The truth about earlier answers: kept beside them, added up, and held against the promise.

    records   what is kept
    store     one SQLite file                                  synchronous
    live      error, calibration and e-value out of it         pure
    ledger    what the server talks to                         a thread with a bounded queue
    metrics   the same for Prometheus

Knows nothing of HTTP. Nothing here waits for a disk on the event loop.
"""

from service.feedback.ledger import Ledger
from service.feedback.records import Feedback

__all__ = ["Feedback", "Ledger"]
