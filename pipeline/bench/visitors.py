"""Visitors of the page *Line* without a browser: each holds the web socket that a browser would.

A visitor asks for the page, joins the socket that the page names, takes every update and says every
few seconds how far it has read, which is all that the server sees of a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import httpx
import socketio

from engines.contracts import EngineFault
from pipeline.lanes import Lane

SOCKET = "/_nicegui_ws/socket.io"
JOINED = re.compile(r"""["']client_id["']:\s*["']([^"']+)["'].*?["']next_message_id["']:\s*(\d+)""")
ACKNOWLEDGE_S = 3.0
PATIENCE_S, LOOK_S = 30.0, 0.1


class Crowd:
    """Visitors who are there, and how many updates they have had."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.updates = 0
        self.all_in = threading.Event()

    async def attend(self, address: str, closing: threading.Event) -> None:
        """Come, stay until told to go."""
        visitors = [_Visitor(self) for _ in range(self.count)]
        try:
            await asyncio.gather(*(one.come(address) for one in visitors))
            self.all_in.set()
            while not closing.is_set():
                await asyncio.sleep(0.1)
        except (httpx.HTTPError, socketio.exceptions.SocketIOError) as error:
            raise EngineFault(f"a visitor of the page was turned away: {error}") from error
        finally:
            await asyncio.gather(*(one.go() for one in visitors))


class _Visitor:
    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._socket = socketio.AsyncClient(reconnection=False)
        self._read_to = 0
        self._reading: asyncio.Task[None] | None = None
        self._socket.on("*", self._take)

    async def come(self, address: str) -> None:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as browser:
            page = (await browser.get(address)).raise_for_status().text
        found = JOINED.search(page)
        if found is None:
            raise EngineFault("the page names no socket to join; it is of another NiceGUI")
        client, self._read_to = found[1], int(found[2])
        query = {
            "client_id": client,
            "next_message_id": self._read_to,
            "implicit_handshake": "true",
            "document_id": uuid.uuid4().hex,
            "tab_id": uuid.uuid4().hex,
        }
        await self._socket.connect(
            f"{address}?{urlencode(query)}",
            socketio_path=SOCKET,
            transports=["websocket"],
            wait_timeout=PATIENCE_S,
        )
        self._reading = asyncio.create_task(self._acknowledge(client))

    async def go(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        await self._socket.disconnect()

    async def _take(self, event: str, *told: object) -> None:
        if event == "update":
            self._crowd.updates += 1
        if told and isinstance(told[0], dict) and "_id" in told[0]:
            self._read_to = int(told[0]["_id"]) + 1

    async def _acknowledge(self, client: str) -> None:
        while True:
            await asyncio.sleep(ACKNOWLEDGE_S)
            read = {"client_id": client, "next_message_id": self._read_to}
            await self._socket.emit("ack", read)


@contextmanager
def visiting(address: str, count: int) -> Iterator[Crowd]:
    """So many visitors of a page while inside, on a thread of their own."""
    crowd = Crowd(count)

    def attend(closing: threading.Event) -> None:
        # Real ones sit at other machines: what they do themselves may not be felt on this one.
        with contextlib.suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        asyncio.run(crowd.attend(address, closing))

    with Lane("visitors", attend) as lane:
        until_s = time.monotonic() + PATIENCE_S
        while not crowd.all_in.wait(LOOK_S):
            lane.check()  # whoever is turned away is not waited for
            if time.monotonic() > until_s:
                told = f"not all {count} visitors reached the page in {PATIENCE_S:.0f} s"
                raise EngineFault(told)
        yield crowd
