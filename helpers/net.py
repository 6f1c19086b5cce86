"""Whether somebody answers: at a URL, on a port, at the model hub."""

import ipaddress
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def hub_problem(seconds: float = 2.0) -> str | None:
    """Why the model hub can't be asked, found within `seconds`; None if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "it is switched off by HF_HUB_OFFLINE"
    answers: list[str | None] = []
    thread = threading.Thread(
        target=lambda: answers.append(no_answer(constants.ENDPOINT, seconds)), daemon=True
    )
    thread.start()  # in a thread, because no timeout covers a slow name look-up
    thread.join(seconds)
    return answers[0] if answers else f"no answer in {seconds:.0f} s"


def no_answer(url: str, seconds: float) -> str | None:
    """Why nobody answers a HEAD request at `url`, or None. Any answer counts, an error status too."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError:  # an answer too
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        # The hub's own client may have other certificates, so a certificate error says nothing about it.
        return None if isinstance(reason, ssl.SSLError) else f"not reachable ({reason})"
    return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def get(url: str, seconds: float, headers: Mapping[str, str] | None = None) -> str:
    """What a URL answers. A redirect is an error status: the headers may hold a key, which stays here.

    Raises:
        OSError: nobody answers, or with an error status.
    """
    request = urllib.request.Request(url, headers=dict(headers or {}))
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=seconds) as answer:
        return answer.read().decode(errors="replace")


def is_loopback(host: str) -> bool:
    """Whether a name or an address, without brackets and port, can only be this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuses(url: str) -> bool:
    """True if nobody listens there any more. A busy server still accepts connections."""
    address = urlsplit(url)
    try:
        with socket.create_connection((address.hostname or "", address.port or 80), timeout=5):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
