"""Tests that hold a store to what `wsgi_isr.store.protocol.Store` promises, for pytest.

.. code-block:: python

    import pytest
    from wsgi_isr.testing import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(tmp_path)

Tests of what `Store.kind` does not claim are skipped. Importing this, or naming it in
``pytest_plugins``, lets pytest show the values that a failed test compared.
"""

import pytest

for name in ("order", "pages", "stores"):
    pytest.register_assert_rewrite(f"{__name__}.{name}")

from .stores import StoreContract as StoreContract  # noqa: E402
from .support import make_record as make_record  # noqa: E402
