"""Django app: declares pages with a decorator, and revalidates them when models change.

It is thin: all that concerns storing and rendering is in the middleware.
"""

try:
    import django as _django  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("wsgi_isr.django needs Django: pip install 'wsgi-isr[django]'") from error

from .changes import invalidate as invalidate
from .changes import revalidate as revalidate
from .changes import revalidate_tag as revalidate_tag
from .handler import get_middleware as get_middleware
from .handler import get_wsgi_application as get_wsgi_application
from .pages import isr_page as isr_page
from .tracking import tag as tag
from .tracking import track as track
