"""The runtime's command line, without anything heavy.

Room: trainer. Pure.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `serve`."""
    parser.add_argument("--host", required=True, metavar="IP", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (%(default)s)")
    parser.add_argument(
        "--model-dir", type=Path, required=True, metavar="DIR", help="holds base/ and, for a version with one, adapter/"
    )
    parser.add_argument(
        "--served-model-name", required=True, nargs="+", metavar="NAME",
        help="what /v1/models lists; answers carry the first",
    )  # fmt: skip
    parser.add_argument(
        "--max-model-len", type=int, metavar="TOKENS", help="longest prompt and answer together (default: the model's)"
    )
    parser.add_argument(
        "--max-batch", type=int, default=32, metavar="N", help="answers generated at the same time (%(default)s)"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=64, metavar="N",
        help="requests that may wait for a place; more get 503 with Retry-After (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: the cores)")
    parser.add_argument(
        "--lame-duck-seconds", type=float, default=1.0, metavar="S",
        help="how long new requests are still taken after SIGTERM, while /health says 503 already (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--grace-seconds", type=float, default=25.0, metavar="S",
        help="how long answers under way may take to end after SIGTERM (%(default)s)",
    )  # fmt: skip
