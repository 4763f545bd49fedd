"""Verdicts posted as JSON to a URL, with the frame id as idempotency key."""

from __future__ import annotations

import threading

import httpx
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
)

from engines.contracts import InspectionError
from pipeline.config import WebhookSettings
from pipeline.outputs.output import StillOwed
from pipeline.stream import VerdictDelivery

BUSY = 429


class Webhook:
    """Posts the verdicts of the chosen decisions; what may pass is tried again, more slowly."""

    name = "webhook"

    def __init__(self, settings: WebhookSettings) -> None:
        self._url = settings.url
        self._decisions = settings.decisions
        self._attempts = settings.attempts
        self._client = httpx.Client(timeout=settings.timeout_s)

    def act(self, delivery: VerdictDelivery, closing: threading.Event) -> None:
        """Post one verdict; raises InspectionError when the receiver refuses it or stays away."""
        if delivery.verdict.decision not in self._decisions:
            return
        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_exponential(multiplier=0.2, max=5),
            stop=stop_after_attempt(self._attempts) | stop_when_event_set(closing),
            sleep=sleep_using_event(closing),
            reraise=True,
        )
        try:
            attempts(self._post, delivery)
        except httpx.HTTPError as error:
            if closing.is_set() and _may_pass(error):
                raise StillOwed("the receiver has not taken the verdict") from error
            raise InspectionError(f"the webhook was refused: {_phrase(error)}") from error

    def rest(self) -> None:
        """Connections are kept as they are."""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _post(self, delivery: VerdictDelivery) -> None:
        verdict = delivery.verdict
        headers = {"content-type": "application/json", "idempotency-key": verdict.frame_id}
        body = verdict.model_dump_json()
        self._client.post(self._url, content=body, headers=headers).raise_for_status()


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return status == BUSY or status >= httpx.codes.INTERNAL_SERVER_ERROR
    return isinstance(error, httpx.TransportError)


def _phrase(error: httpx.HTTPError) -> str:
    """What happened, without the URL, which may carry a token."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    return type(error).__name__
