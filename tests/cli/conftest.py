"""Fixtures of the command line's tests."""

import secrets

import pytest

from ratchet_local import S3Access


@pytest.fixture
def bucket(s3: S3Access, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of one's own, with credentials in the environment as a person has them."""
    name = f"test-{secrets.token_hex(4)}"
    s3.create_bucket(name)
    for key, value in s3.env().items():
        monkeypatch.setenv(key, value)
    return name
