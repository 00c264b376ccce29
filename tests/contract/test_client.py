"""The client and the server say the same, although neither imports the other."""

from typing import get_args

import pytest
from pydantic import BaseModel

from dalorra import client
from dalorra.client._errors import BY_ERROR_TYPE, BY_STATUS
from dalorra.decision.policy import Decision, Policy
from service.api import schemas
from service.api.feedback import FeedbackResponse
from service.api.problems import CLIENT_GONE, ERROR_TYPES, PROBLEMS


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (schemas.PredictResponse, client.Prediction),
        (schemas.InfoResponse, client.Info),
        (schemas.LimitsInfo, client.Limits),
        (schemas.AdapterInfo, client.Adapter),
        (FeedbackResponse, client.Feedback),
    ],
)
def test_every_field_has_its_counterpart(theirs: type[BaseModel], ours: type[BaseModel]):
    assert set(ours.model_fields) == set(theirs.model_fields)


def test_the_policy_is_read_in_part():
    assert set(client.Policy.model_fields) <= set(Policy.model_fields)


def test_what_the_server_writes_the_client_reads():
    [example] = schemas.PredictResponse.model_config["json_schema_extra"]["examples"]  # type: ignore[index,call-overload]
    read = client.Prediction.model_validate(example)
    assert read.model_dump(exclude_unset=True) == example


def test_the_decisions_are_the_same():
    assert set(get_args(client.Decision)) == set(Decision)


def test_every_error_has_a_class():
    assert set(BY_ERROR_TYPE) == set(ERROR_TYPES) - {"client_gone"}


def test_a_status_leads_to_the_family_that_the_slug_leads_to():
    """So that an error of a proxy, which has no slug, is of the class a program expects."""
    for problem in PROBLEMS.values():
        if problem.status not in (CLIENT_GONE, 500):
            assert issubclass(BY_ERROR_TYPE[problem.error_type], BY_STATUS[problem.status])
