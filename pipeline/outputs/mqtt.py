"""Verdicts to an MQTT broker, as JSON at ``<topic>/<camera>``."""

from __future__ import annotations

import threading

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from pipeline.config import MqttSettings
from pipeline.outputs.output import StillOwed
from pipeline.stream import VerdictDelivery

LOOK_S = 0.02
KEEPALIVE_S = 15


class Mqtt:
    """Publishes each verdict and waits for the broker's word; a lost broker is waited for.

    While it waits, the queue in front of it fills up and what does not fit is a counted overrun.
    """

    name = "mqtt"

    def __init__(self, settings: MqttSettings) -> None:
        self._topic = settings.topic.rstrip("/")
        self._qos = settings.qos
        self._client = Client(CallbackAPIVersion.VERSION2)
        if settings.username:
            password = settings.password.get_secret_value() if settings.password else None
            self._client.username_pw_set(settings.username, password)
        self._client.reconnect_delay_set(min_delay=1, max_delay=10)
        self._client.connect_async(settings.host, settings.port, KEEPALIVE_S)
        self._client.loop_start()

    def act(self, delivery: VerdictDelivery, closing: threading.Event) -> None:
        """Publish one verdict; QoS 1 may deliver it twice, ``frame_id`` tells."""
        while not self._client.is_connected():
            _wait(closing)
        sent = self._client.publish(
            f"{self._topic}/{delivery.camera}", delivery.verdict.model_dump_json(), self._qos
        )
        while not sent.is_published():  # the client sends it again by itself when it reconnects
            _wait(closing)

    def rest(self) -> None:
        """The client's own thread keeps the connection alive."""

    def close(self) -> None:
        """Say goodbye to the broker."""
        self._client.disconnect()
        self._client.loop_stop()


def _wait(closing: threading.Event) -> None:
    if closing.wait(LOOK_S):
        raise StillOwed("the broker has not taken the verdict")
