"""What the Tinker SDK leaves no other way to do. tests/test_patches.py says whether it is still needed and
still fits.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from helpers import net
from helpers.errors import BackendError

STUB_ENDED = (
    "run this notebook again from the top (or `course run --resume`): it starts another, and training goes "
    "on from its "
    "last checkpoint; if you did not end it, it may have run out of memory"
)


def stop_waiting_when_ended(url: str, *holders: Any) -> None:
    """Make requests to a stub that has ended fail at once with a BackendError.

    The SDK (0.38) asks a silent server again for 5 minutes, and for a result it waits for ever: right for a
    service that comes back, but a stub that was killed never does. No argument of its clients shortens that.
    All of its requests go through `aclient` of a client's holder.
    """
    import tinker

    def watched(aclient: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def watch(pool: Any) -> Iterator[Any]:
            try:
                with aclient(pool) as client:
                    client.max_retries = 1  # below us the SDK would try 10 times, over a minute and more
                    yield client
            except tinker.APIConnectionError as error:
                if net.refuses(url):
                    raise BackendError(f"the stub Tinker backend ({url}) has ended", STUB_ENDED) from error
                raise

        return watch

    for holder in holders:
        holder.aclient = watched(holder.aclient)


def follow_no_redirects() -> None:
    """From now on, the SDK's clients of this process take a redirect for an error.

    The SDK (0.38) follows one to any address with the key in X-API-Key and the whole body, because httpx and
    pyqwest only take away headers that they know. Both can be told not to, but no argument of the SDK's
    clients says it to them.
    """
    import pyqwest
    from pyqwest.httpx import AsyncPyqwestTransport
    from tinker import _base_client

    def transport() -> AsyncPyqwestTransport:
        return AsyncPyqwestTransport(
            pyqwest.HTTPTransport(tls_include_system_certs=True, follow_redirects=False)
        )

    if not isinstance(_base_client.AsyncHttpxClientWrapper, functools.partial):
        _base_client._default_pyqwest_transport = transport
        _base_client.AsyncHttpxClientWrapper = functools.partial(  # type: ignore[misc]
            _base_client.AsyncHttpxClientWrapper, follow_redirects=False
        )
