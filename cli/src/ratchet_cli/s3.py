"""Object storage as the commands reach it: an address taken apart, and a client with the environment's credentials.

Room: cli. Talks to nobody until the client is used.
"""

import os
from typing import Any


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` to (`bucket`, `a/b`)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def client(endpoint: str | None, region: str | None = None) -> Any:
    """An S3 client with the credentials of the environment; what is not given is the environment's too."""
    import boto3
    from botocore.config import Config

    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"max_attempts": 3, "mode": "standard"}, connect_timeout=10, read_timeout=60,
        s3={"addressing_style": "path" if endpoint else "auto"},
    )  # fmt: skip
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return boto3.session.Session(region_name=region).client("s3", endpoint_url=endpoint, config=config)
