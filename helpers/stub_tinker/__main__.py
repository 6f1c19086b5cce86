"""`python -m helpers.stub_tinker`: start the stub Tinker backend."""

import argparse
import asyncio
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.errors import CourseError
from helpers.files import write_json

PORT = 8765
FETCH_SECONDS = 15  # how long a server that stops keeps finished results for their clients


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.stub_tinker",
        description="A stub Tinker backend: the wire protocol of the real tinker SDK, and real LoRA training on this machine.",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s; any other needs a key)",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help="port to listen on, 0 for any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--state-dir", type=Path, help="folder for checkpoints (default: stub/ in the course's cache folder)"
    )
    parser.add_argument(
        "--base-model",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of a base model, may be given more than once (default: the course's 135M model)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="key that clients must send, starting with tml-; may be given more than once (default: $STUB_TINKER_API_KEY)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file with one key a line, for a class; lines with # are notes",
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of training and sampling",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with (default: all cores)")
    parser.add_argument(
        "--idle-exit",
        type=float,
        default=0,
        metavar="SECONDS",
        help="end when unused for this long (default: never)",
    )
    parser.add_argument("--status", action="store_true", help="say what the running server does, and end")
    parser.add_argument(
        "--url", help="with --status: the server to ask (default: the one that uses the state folder)"
    )
    return parser.parse_args(arguments)


def api_keys(options: argparse.Namespace) -> list[str]:
    """The keys that the options name.

    Raises:
        CourseError: the file can't be read, or a key is not one that the SDK sends. The key itself is never shown.
    """
    keys = list(options.api_key)
    if options.api_key_file:
        try:
            lines = options.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CourseError(
                f"can't read the keys in {options.api_key_file}: {getattr(error, 'strerror', error)}",
                "write one key a line",
            ) from error
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise CourseError(f"{options.api_key_file} holds no key", "write one key a line")
    if not keys and os.environ.get("STUB_TINKER_API_KEY"):
        keys = [os.environ["STUB_TINKER_API_KEY"]]
    for number, key in enumerate(keys, start=1):
        if not key.startswith("tml-") or not key.isascii() or not key.isprintable() or " " in key:
            which = "the key" if len(keys) == 1 else f"key {number} of {len(keys)}"
            raise CourseError(
                f"{which} must start with tml- and hold letters, digits and signs only, or the SDK refuses it",
                "choose a key such as tml-my-class",
            )
    return keys


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        CourseError: the port is taken or the address is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends answers without delay (TCP_NODELAY) only on sockets that name the protocol; else each takes 40 ms more
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        return listener
    except OSError as error:
        raise CourseError(
            f"can't listen on {host}:{port}: {error.strerror}",
            "choose another with --port, or --port 0 for any free one",
        ) from error


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main() -> int:
    options = parse_arguments()
    try:
        return run(options)
    except CourseError as error:
        print(f"stub_tinker: {error}", file=sys.stderr)
        return 1


def show_status(options: argparse.Namespace) -> int:
    from helpers.stub_tinker import status

    keys = api_keys(options)
    key = keys[0] if keys else None
    if options.url:
        url = options.url.rstrip("/")
        print(status.text(status.fetch(url, key), url))
    else:
        print(status.of_state_dir(state_dir(options), key))
    return 0


def say_started(url: str, options: argparse.Namespace, service: Any) -> None:
    """What an operator wants to know when the server is up."""
    state, keys = state_dir(options), api_keys(options)
    folders = list(service.engine.bases)
    print(
        f"stub Tinker backend on {url} ({service.device.type}, {str(service.dtype).split('.')[-1]})",
        flush=True,
    )
    print(
        f"  checkpoints in {state}\n  to use it:  export TINKER_BASE_URL={url} TINKER_API_KEY={'your key' if keys else 'tml-stub'}\n"
        f"  to see what it does:  {url} in a browser, or python -m helpers.stub_tinker --status --state-dir {state}\n"
        "  base models: " + "\n               ".join(folders),
        flush=True,
    )


def state_dir(options: argparse.Namespace) -> Path:
    from helpers import paths

    return (options.state_dir or paths.cache_dir() / "stub").absolute()


def run(
    options: argparse.Namespace, say: Callable[[str, argparse.Namespace, Any], None] = say_started
) -> int:
    """Serve until stopped by a signal or by idleness. Returns the exit status.

    Args:
        options: from `parse_arguments`.
        say: called once when the server is up, with its address, the options and the service.
    """
    from helpers import local_model, model_folder

    if options.status:
        return show_status(options)
    keys = api_keys(options)
    if not is_loopback(options.host) and not keys:
        raise CourseError(
            f"listening on {options.host} would let anyone on the network in", "give a key: --api-key tml-…"
        )
    listener = bind(options.host, options.port)
    folders = [str(Path(folder).absolute()) for folder in options.base_model] or [
        str(local_model.local_base_model())
    ]
    for folder in folders:
        model_folder.check_model_folder(folder)
    state = state_dir(options)
    note = state / "server.json"

    import torch
    import uvicorn

    from helpers.stub_tinker.model import Config
    from helpers.stub_tinker.server import App
    from helpers.stub_tinker.service import Service
    from helpers.stub_tinker.status import TOKEN_FILE
    from helpers.stub_tinker.store import Store, lock

    for folder in folders:
        try:
            Config.read(Path(folder))
        except (ValueError, KeyError) as error:
            what = f"{folder}/config.json has no {error}" if isinstance(error, KeyError) else error
            raise CourseError(
                f"the stub can't serve this base model: {what}", "give it another with --base-model"
            ) from error
    try:
        lock(
            state, note.exists, lambda: print(f"waiting for the server that uses {state} to end", flush=True)
        )
    except TimeoutError:
        raise CourseError(
            f"another stub Tinker backend uses {state}",
            "give this one another folder with --state-dir, or stop the other",
        ) from None
    if options.threads:
        torch.set_num_threads(options.threads)
    precision = None if options.precision == "auto" else getattr(torch, options.precision)
    service = Service(Store(state), {folder: Path(folder) for folder in folders}, precision)
    token = secrets.token_urlsafe(24)
    app = App(service, keys, token)
    service.engine.start()
    url = f"http://{options.host}:{listener.getsockname()[1]}"
    notes = [note, state / TOKEN_FILE]
    notes[1].unlink(missing_ok=True)
    with open(os.open(notes[1], os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    server = uvicorn.Server(
        uvicorn.Config(
            app.starlette(),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=30,
            lifespan="off",
            ws="none",
        )
    )

    def forget() -> None:
        for path in notes:
            path.unlink(missing_ok=True)

    def on_signal(signal_number: int, frame: object) -> None:
        if app.stopping:  # asked twice: at once
            forget()
            os._exit(1)
        app.stopping = True

    server.handle_exit = on_signal  # uvicorn's own drops the results that clients still wait for
    write_json(note, {"url": url, "pid": os.getpid(), "base_models": folders})
    say(url, options, service)
    try:
        asyncio.run(_serve(server, listener, app, options.idle_exit, forget))
    finally:
        forget()
    service.engine.stop()
    service.engine.join(timeout=60)
    return 0


async def _serve(server, listener: socket.socket, app, idle_exit: float, forget) -> None:
    """Serve until a signal comes, or until nobody has used the server for `idle_exit` seconds."""
    loop = asyncio.get_running_loop()
    app.last_request = loop.time()
    task = asyncio.create_task(server.serve(sockets=[listener]))
    look = loop.time()
    while not task.done() and not app.stopping:
        await asyncio.wait([task], timeout=0.2)
        if loop.time() > look:
            await asyncio.to_thread(app.service.drop_lapsed_sessions)
            look = loop.time() + 10
        if idle_exit and loop.time() - app.last_request > idle_exit and not app.service.engine.queued:
            break
    app.stopping = True
    forget()  # who looks for a server now starts another, which waits for this one
    await _finish(app, task)
    server.should_exit = True
    await task
    print("stopped", flush=True)


async def _finish(app, task: asyncio.Task) -> None:
    """Wait for accepted work, and then for clients to fetch its results."""
    loop = asyncio.get_running_loop()
    ready, said = loop.time(), ""
    while not task.done():
        waiting = app.service.waiting().values()
        running = sum(not future.done() for future in waiting)
        unfetched = sum(future.done() and future not in app.fetched for future in waiting)
        if running:
            ready = loop.time()
        elif not unfetched or loop.time() - ready > FETCH_SECONDS:
            break
        text = (
            f"stopping: finishing what was accepted ({running} left)"
            if running
            else f"stopping: waiting up to {FETCH_SECONDS} s for clients to fetch their results ({unfetched} left)"
        )
        if text != said:
            print(f"{text}; a second signal ends it at once", flush=True)
            said = text
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it was started as ignored
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    sys.exit(main())
