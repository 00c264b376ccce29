"""FastAPI around the loop: an endpoint on the thread pool, a lock around the model."""

from threading import Lock

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving_load.looping import Answer, LoopedLora, server_arguments


class Question(BaseModel):
    """One input, and until when its answer is waited for."""

    input: str
    until: float


def create_app(model: LoopedLora) -> FastAPI:
    """The application."""
    app = FastAPI()
    lock = Lock()

    @app.post("/predict")
    def predict(question: Question) -> Answer:
        with lock:
            return model.answer([question.input], question.until)[0]

    return app


if __name__ == "__main__":
    options = server_arguments().parse_args()
    uvicorn.run(create_app(LoopedLora(options)), host="127.0.0.1", port=options.port)
