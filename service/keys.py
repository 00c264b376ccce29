"""Bearer keys, of which the server knows and keeps only the hashes.

A key that this module makes has 256 random bits, so a plain SHA-256 of it is as good as a slow
one: there is nothing to guess. A slow hash for each request would let strangers use up the CPU.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from dalorra.errors import ConfigError

SHORTEST = 20
"""Characters of a key that is worth hashing: a shorter one can be guessed from its hash."""

_PREFIX = "sha256:"
_HASHED = re.compile(r"sha256:([0-9a-f]{64})(\s+#.*)?")


def new_key() -> str:
    """A key that nobody can guess."""
    return secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What stands for a key in a file of keys.

    Raises:
        ConfigError: the key is so short that it could be guessed from its hash.
    """
    if len(key) < SHORTEST:
        raise ConfigError(
            f"the key has {len(key)} characters and could be guessed from its hash: "
            f"use one of at least {SHORTEST}"
        )
    return _PREFIX + digest(key).hex()


def digest(key: str) -> bytes:
    """SHA-256 of a key as a client sends it."""
    return hashlib.sha256(key.encode()).digest()


def known_digest(text: str) -> bytes:
    """Digest of a known key, which is written as itself or as `hash_key` writes it.

    Raises:
        ValueError: it begins like a hash but is not one.
    """
    if not text.startswith(_PREFIX):
        return digest(text)
    hashed = _HASHED.fullmatch(text)
    if hashed is None:
        raise ValueError("a key begins with sha256: but 64 hexadecimal digits do not follow")
    return bytes.fromhex(hashed[1])


def digests_in(lines: Iterable[str]) -> list[bytes]:
    """Digests of the keys in a file: one for each line that is neither empty nor a comment.

    Raises:
        ValueError: see `known_digest`.
    """
    stripped = (line.strip() for line in lines)
    return [known_digest(line) for line in stripped if line and not line.startswith("#")]


def all_digests(keys: Iterable[str], file: Path | None, setting: str) -> tuple[bytes, ...]:
    """Digests of the keys in a setting and of those in a file.

    Args:
        keys: as a setting has them.
        file: with more keys, if any.
        setting: what names the file.

    Raises:
        ConfigError: the file cannot be read, holds no key, or holds a broken hash.
    """
    digests = [known_digest(key) for key in keys]
    if file is not None:
        try:
            from_file = digests_in(file.read_text().splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{setting} cannot be read: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{setting} {file}: {error}") from None
        if not from_file:
            raise ConfigError(f"{setting} {file} holds no key")
        digests += from_file
    return tuple(digests)


def fingerprint(digest: bytes) -> str:
    """The first hexadecimal digits of a key's digest: enough to tell in a log whose it is."""
    return digest.hex()[:8]


def owner_name(digest: bytes | None) -> str:
    """Whose something is: of a key's digest enough that no two keys share it.

    Args:
        digest: of the key; None where keys are not asked for: then all is one owner's, "".
    """
    return "" if digest is None else digest.hex()[:16]


def matching(key: str, known: Sequence[bytes]) -> bytes | None:
    """The digest of a client's key if it is a known one, else None.

    All digests are compared, each to its end, so that the time this takes tells nothing.
    """
    asked = digest(key)
    found = [hmac.compare_digest(asked, one) for one in known]
    return asked if any(found) else None
