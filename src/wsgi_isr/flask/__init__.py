"""Flask extension: declares pages with a decorator, and revalidates them in route handlers.

It is thin: all that concerns storing and rendering is in the middleware.
"""

try:
    import flask as _flask  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("wsgi_isr.flask needs Flask: pip install 'wsgi-isr[flask]'") from error

from .extension import ISR as ISR
from .extension import invalidate as invalidate
from .extension import revalidate as revalidate
from .extension import revalidate_tag as revalidate_tag
from .pages import isr_page as isr_page

__all__ = ["ISR", "invalidate", "isr_page", "revalidate", "revalidate_tag"]
