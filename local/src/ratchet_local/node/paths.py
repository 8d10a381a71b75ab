"""How a container finds its volumes without a mount namespace: paths in its command line and environment are rewritten.

Room: local. Pure.

A mount path, or a path below it, counts only as whole components: with a mount at `/etc/ratchet`, `/etc/ratchet`,
`--file=/etc/ratchet/a.json` and `file:///etc/ratchet` are rewritten, `/etc/ratchet.d`, `/etc/ratchets` and
`/srv/etc/ratchet` are not. What a program has built in, or reads from a file, cannot be seen from here: manifests
must hand paths over as arguments or variables. In the same way `0.0.0.0` becomes the pod's own address, so that
two pods may listen on the same port.
"""

import re
from collections.abc import Callable, Mapping

_BEFORE = r"(?:(?<=://)|(?<![\w.\-/~]))"
_AFTER = r"(?![\w\-]|\.\w)"


def rewriter(mounts: Mapping[str, str], pod_ip: str) -> Callable[[str], str]:
    """A function that rewrites one string. `mounts` maps container paths to host paths; the longest match wins."""
    table = {source.rstrip("/") or "/": target for source, target in mounts.items()}
    ordered = sorted((path for path in table if path != "/"), key=len, reverse=True)
    paths = re.compile(f"{_BEFORE}({'|'.join(map(re.escape, ordered))}){_AFTER}") if ordered else None
    anywhere = re.compile(r"(?<![\w.])0\.0\.0\.0(?![\w.]|/\d)")

    def rewrite(text: str) -> str:
        if paths is not None:
            text = paths.sub(lambda match: table[match[1]], text)
        return anywhere.sub(pod_ip, text)

    return rewrite
