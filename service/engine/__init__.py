"""From concurrent requests to packed forwards. Knows nothing of HTTP.

The way of an input is the list of files, and each piece of state has one owner:

    admission   can it be answered in time?              counts of reserved requests and rows
    lengths     rows of an input that is not tokenised yet            a line through recent inputs
    entry       one distinct input and everyone who waits for it      its state, rows and waiters
    queue       whose turn it is, and who may wait                    the waiting line
    pace        how fast the model works                              the last few batches
    batcher     no timer: while one batch runs the next one fills     the running batch
    worker      one model thread                                      the device

Everything but `worker` lives on the event loop, so nothing needs a lock, and time is the loop's
time: tests run it on a loop whose clock they move.
"""

from service.engine.engine import Engine
from service.engine.entry import Answer
from service.engine.interfaces import Limits, Observer, Predictor
from service.engine.worker import ModelThread

__all__ = ["Answer", "Engine", "Limits", "ModelThread", "Observer", "Predictor"]
