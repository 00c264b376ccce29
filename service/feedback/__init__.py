"""The truth about earlier answers: kept beside them, added up, and held against the promise.

    records   what is kept
    tables    what a store keeps, and how it is asked          synchronous
    store     the tables in one SQLite file
    postgres  the same in a database that replicas share
    places    which of the two
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
