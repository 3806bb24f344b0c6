"""Settings that the tests of sweeps share."""

import signal

import pytest


@pytest.fixture(scope="module", autouse=True)
def hears_ctrl_c():
    """Child processes handle Ctrl-C, also if the tests run in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)
