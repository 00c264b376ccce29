"""The Python client: typed answers, typed errors, patient with a busy server.

```python
from dalorra.client import Client, QueueFullError

with Client("http://localhost:8000", api_key="…") as client:
    prediction = client.predict("This movie was fantastic!")
    if prediction.decision == "accept":
        print(prediction.label)
```

Needs httpx and pydantic only, as `pip install dalorra-service` without an extra brings them.
"""

from dalorra.client._answers import (
    Adapter,
    Answers,
    ChoiceAnswer,
    Decision,
    Feedback,
    Health,
    Info,
    Input,
    Limits,
    NoulAnswer,
    Policy,
    Prediction,
    Promise,
    Question,
    ScoreAnswer,
    State,
    Usage,
)
from dalorra.client._client import AsyncClient, Client
from dalorra.client._errors import (
    AdapterRefusedError,
    BusyError,
    ClientError,
    ConflictError,
    DeadlineExceededError,
    ForbiddenError,
    InferenceFailedError,
    InvalidInputError,
    MalformedRequestError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    RateLimitedError,
    RequestError,
    ServerError,
    SlowRequestError,
    TimedOutError,
    TooLargeError,
    TransportError,
    UnauthorizedError,
    UnexpectedAnswerError,
    UnknownAdapterError,
    WrongHostError,
)
from dalorra.client._retries import Retries

__all__ = [
    "Adapter",
    "AdapterRefusedError",
    "Answers",
    "AsyncClient",
    "BusyError",
    "ChoiceAnswer",
    "Client",
    "ClientError",
    "ConflictError",
    "DeadlineExceededError",
    "Decision",
    "Feedback",
    "ForbiddenError",
    "Health",
    "InferenceFailedError",
    "Info",
    "Input",
    "InvalidInputError",
    "Limits",
    "MalformedRequestError",
    "NotFoundError",
    "NotReadyError",
    "NoulAnswer",
    "Policy",
    "Prediction",
    "Promise",
    "Question",
    "QueueFullError",
    "RateLimitedError",
    "RequestError",
    "Retries",
    "ScoreAnswer",
    "ServerError",
    "SlowRequestError",
    "State",
    "TimedOutError",
    "TooLargeError",
    "TransportError",
    "UnauthorizedError",
    "UnexpectedAnswerError",
    "UnknownAdapterError",
    "Usage",
    "WrongHostError",
]
