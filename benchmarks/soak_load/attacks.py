"""Strangers who mean harm: connections that say nonsense, or that never say what they began."""

import asyncio
import random
from itertools import cycle
from urllib.parse import urlsplit

_HEAD = b"POST /metrics HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
_ATTACKS = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is no HTTP\r\n\r\n",
    _HEAD + b"Content-Length: 1900000\r\n\r\n" + b'{"input": "' + b"a" * 10_000,
    _HEAD + b"X-Never: ",
    _HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"inp\r\n',
    _HEAD + b'Content-Length: 9\r\n\r\n\xff\xfe{"input',
)


async def attack(url: str, per_second: float, seconds: float, seed: int) -> int:
    """Opens so many connections per second, none if 0, and leaves each to the server to close.

    Those that are left are closed at the end.

    Returns:
        How many the server had closed by itself by then.
    """
    host, port = urlsplit(url).hostname, urlsplit(url).port
    chance, kinds = random.Random(seed), cycle(_ATTACKS)
    until = asyncio.get_running_loop().time() + seconds
    connections: set[asyncio.Task[bool]] = set()

    async def connect(words: bytes) -> bool:
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(words)
            while await reader.read(65_536):
                pass
        except OSError:
            return True
        writer.close()
        return True

    while asyncio.get_running_loop().time() < until:
        if per_second:
            connections.add(asyncio.create_task(connect(next(kinds))))
        await asyncio.sleep(chance.expovariate(per_second or 1.0))
    closed = sum(task.done() for task in connections)
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    return closed
