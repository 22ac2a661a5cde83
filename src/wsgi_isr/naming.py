"""What paths and patterns mean, as users write them in on-demand calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from .key import Origin, Origins, PageKey, is_ambiguous
from .rules import check_pattern, is_pattern, to_wsgi

_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")


def parse(origins: Origins, path: str, origin: Origin | None) -> tuple[Origin | None, str, str]:
    """Where a path leads: origin if any, decoded path with mount point, query string.

    :raises ValueError: for what is no path.
    """
    if not isinstance(path, str):
        raise ValueError(f"pass each path as an argument: revalidate(*paths), not {path!r}")
    if not path or _UNPRINTABLE.search(path):
        raise ValueError(f"a path starts with / and is percent-encoded, not {path!r}")
    base = origins.base
    place = origin
    local = path
    if "://" in path.partition("?")[0]:
        try:
            parts = urlsplit(path)
            host = origins.trust(parts.scheme, parts.netloc)
        except ValueError:
            host = None
        if host is None:
            raise ValueError(f"{path!r} is on a host that has no pages")
        mount = base.mount if base is not None else origin.mount if origin else ""
        place = Origin(parts.scheme, host, mount)
        local = path.split("://", 1)[1][len(parts.netloc) :] or "/"
    elif base is not None:
        mount = base.mount or (origin.mount if origin is not None else "")
        place = base._replace(mount=mount)
    if not local.startswith("/") or "#" in local:
        raise ValueError(f"a path starts with / and has no fragment: {path!r}")
    local, _, query_string = local.partition("?")
    if is_pattern(local):
        raise ValueError(
            f"{path!r} is a pattern, which invalidate() takes; write *, < and [ of a path as %2A, "
            "%3C and %5B"
        )
    full_path = to_wsgi(local)
    if is_ambiguous(full_path):
        raise ValueError(f"{path!r} has //, dot segments, \\ or control characters")
    certain = origin is not None or (base is not None and base.mount != "")
    if place is not None and certain and not is_under(place.mount, full_path):
        raise ValueError(f"{path!r} is not under the mount point {place.mount!r}")
    return place, full_path, query_string


def mounted(place: Origin, full_path: str, stored: Sequence[PageKey]) -> Origin:
    """The origin with the mount point of the path: outside of a request, as it is stored."""
    if not place.mount:
        mounts = {key.mount for key in stored if is_under(key.mount, full_path)}
        if mounts:
            return place._replace(mount=max(mounts, key=len))
    return place


def label_of(origins: Origins, pattern: str, origin: Origin | None) -> str:
    """What a pattern invalidates.

    :raises ValueError: for a pattern that can never match.
    """
    check_pattern(pattern)
    base = origins.base
    mount = (base.mount if base is not None else "") or (origin.mount if origin else "")
    literal = to_wsgi(pattern.partition("*")[0])
    if mount and not (mount + "/").startswith(literal) and not is_under(mount, literal):
        raise ValueError(f"{pattern!r} can never match: pages are under {mount!r}")
    return f"pattern:{pattern}" if "*" in pattern else f"path:{literal}"


def is_under(mount: str, full_path: str) -> bool:
    return not mount or full_path == mount or full_path.startswith(mount + "/")
