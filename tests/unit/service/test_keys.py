"""Bearer keys: hashed at rest, and never anywhere else."""

import hmac

import pytest
from structlog.testing import capture_logs

from dalorra.errors import ConfigError
from service.keys import digest, digests_in, hash_key, known_digest, matching, new_key
from tests.serving import serving

KEY = "a-key-of-decent-length"


def test_a_new_key_is_long_and_new():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {43}  # 256 bits in base 64


@pytest.mark.parametrize(
    "line", [KEY, f"  {KEY}  ", hash_key(KEY), f"{hash_key(KEY)}  # the billing agent"]
)
def test_a_key_and_its_hash_are_known_alike(line: str):
    assert digests_in(["# keys", "", line]) == [digest(KEY)]


def test_the_hash_is_not_the_key():
    assert KEY not in hash_key(KEY)
    assert matching(KEY, [known_digest(hash_key(KEY))]) == digest(KEY)
    assert matching(hash_key(KEY), [known_digest(hash_key(KEY))]) is None


@pytest.mark.parametrize(
    "text", ["sha256:", "sha256:abc", "sha256:" + "A" * 64, hash_key(KEY) + " billing"]
)
def test_half_a_hash_is_refused_rather_than_taken_for_a_key(text: str):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        known_digest(text)


def test_a_key_that_its_hash_would_give_away_is_refused():
    with pytest.raises(ConfigError, match="has 6 characters and could be guessed"):
        hash_key("hunter")


@pytest.mark.parametrize("asked", ["first", "second", "third", "none"])
def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch, asked: str):
    compared = []
    to_the_end = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return to_the_end(one, other)

    monkeypatch.setattr("service.keys.hmac.compare_digest", compare)
    known = [digest(key) for key in ("first", "second", "third")]
    found = matching(asked, known)

    assert compared == known
    assert found == (digest(asked) if asked != "none" else None)


async def test_a_server_that_has_only_the_hash_knows_the_key():
    with capture_logs() as logs:
        async with serving(api_keys=f"{hash_key(KEY)},another") as server:
            opened = await server.predict("a", headers={"Authorization": f"Bearer {KEY}"})
            other = await server.predict("b", headers={"Authorization": "Bearer another"})
            stolen = await server.predict("c", headers={"Authorization": f"Bearer {hash_key(KEY)}"})

    assert [one.status_code for one in (opened, other, stolen)] == [200, 200, 401]
    lines = [line for line in logs if line["event"] == "request"]
    assert [line.get("key") for line in lines] == [
        digest(KEY).hex()[:8],
        digest("another").hex()[:8],
        None,
    ]
    assert KEY not in str(logs)
