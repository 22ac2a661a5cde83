"""Tests that hold a store to what `wsgi_isr.store.protocol.Store` promises, for pytest.

.. code-block:: python

    import pytest
    from wsgi_isr.testing import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(tmp_path)

With ``pytest_plugins = ["wsgi_isr.testing"]`` in your ``conftest.py``, a failure shows the values
that were compared.
"""

import pytest

pytest.register_assert_rewrite("wsgi_isr.testing.stores")

from .stores import make_record as make_record  # noqa: E402
from .stores import StoreContract as StoreContract  # noqa: E402
