"""`python -m helpers.stub_tinker`: start the stub Tinker backend."""

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import socket
import sys
from pathlib import Path

from helpers.errors import CourseError
from helpers.files import write_json

PORT = 8765


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.stub_tinker",
        description="A stub Tinker backend: the wire protocol of the real tinker SDK, and real LoRA training on this machine.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s; any other needs a key)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on, 0 for any free one (default: %(default)s)")
    parser.add_argument("--state-dir", type=Path, help="folder for checkpoints (default: stub/ in the course's cache folder)")
    parser.add_argument("--base-model", action="append", default=[], metavar="FOLDER",
                        help="folder of a base model, may be given more than once (default: the course's 135M model)")
    parser.add_argument("--api-key", default=os.environ.get("STUB_TINKER_API_KEY"),
                        help="key that clients must send, starting with tml- (default: $STUB_TINKER_API_KEY)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="of training and sampling")
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with (default: all cores)")
    parser.add_argument("--idle-exit", type=float, default=0, metavar="SECONDS", help="end when unused for this long (default: never)")
    return parser.parse_args(arguments)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        CourseError: the port is taken or the address is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        return listener
    except OSError as error:
        raise CourseError(f"can't listen on {host}:{port}: {error.strerror}", "choose another with --port, or --port 0 for any free one") from error


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


def run(options: argparse.Namespace) -> int:
    """Serve until stopped by a signal or by idleness. Returns the exit status."""
    from helpers import models

    if not is_loopback(options.host) and not options.api_key:
        raise CourseError(f"listening on {options.host} would let anyone on the network in", "give a key: --api-key tml-…")
    if options.api_key and not options.api_key.startswith("tml-"):
        raise CourseError("the key must start with tml-, or the SDK refuses it", "choose a key such as tml-my-class")
    listener = bind(options.host, options.port)
    folders = [str(Path(folder).absolute()) for folder in options.base_model] or [str(models.local_base_model())]
    for folder in folders:
        models.check_model_folder(folder)
    state = (options.state_dir or models.cache_dir() / "stub").absolute()

    import torch
    import uvicorn

    from helpers.stub_tinker.server import App
    from helpers.stub_tinker.service import Service
    from helpers.stub_tinker.store import Store

    if options.threads:
        torch.set_num_threads(options.threads)
    precision = None if options.precision == "auto" else getattr(torch, options.precision)
    service = Service(Store(state), {folder: Path(folder) for folder in folders}, precision)
    app = App(service, options.api_key)
    service.engine.start()
    url = f"http://{options.host}:{listener.getsockname()[1]}"
    note = state / "server.json"
    write_json(note, {"url": url, "pid": os.getpid(), "base_models": folders})
    print(f"stub Tinker backend on {url} ({service.device.type}, {str(service.dtype).split('.')[-1]})", flush=True)
    print(f"  checkpoints in {state}\n  to use it:  export TINKER_BASE_URL={url} TINKER_API_KEY={'your key' if options.api_key else 'tml-stub'}\n"
          "  base models: " + "\n               ".join(folders), flush=True)
    server = uvicorn.Server(uvicorn.Config(app.starlette(), log_level="warning", access_log=False, timeout_keep_alive=75))
    try:
        asyncio.run(_serve(server, listener, app, options.idle_exit))
    finally:
        if note.exists() and json.loads(note.read_text())["pid"] == os.getpid():
            note.unlink()
    service.engine.stop()
    service.engine.join(timeout=60)
    return 0


async def _serve(server, listener: socket.socket, app, idle_exit: float) -> None:
    """Serve, and stop once nobody has used the server for `idle_exit` seconds."""
    loop = asyncio.get_running_loop()
    app.last_request = loop.time()
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not task.done():
        await asyncio.wait([task], timeout=5)
        if idle_exit and loop.time() - app.last_request > idle_exit and not app.service.engine.queued:
            server.should_exit = True
    await task


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    sys.exit(main())
