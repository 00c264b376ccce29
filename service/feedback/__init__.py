"""The truth about earlier answers: kept beside them, added up, and held against the promise.

    records   what is kept
    store     one SQLite file                                  synchronous
    live      error, calibration and e-value out of it         pure
    clerk     writes and adds up                               a thread
    ledger    what the server talks to                         a bounded inbox of messages
    metrics   the same for Prometheus
    export    judged answers, for calibration

Knows nothing of HTTP. Nothing here waits for a disk on the event loop.
"""

from service.feedback.ledger import Ledger, Told
from service.feedback.records import Feedback

__all__ = ["Feedback", "Ledger", "Told"]
