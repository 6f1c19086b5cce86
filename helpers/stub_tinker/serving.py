"""A server from its start to its orderly stop: nothing that was accepted is lost, and its notes go first."""

import argparse
import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import uvicorn

from helpers.errors import CourseError
from helpers.stub_folder import own_key, proof
from helpers.stub_tinker import connections, state_folder
from helpers.stub_tinker.access import Access
from helpers.stub_tinker.budgets import GIB
from helpers.stub_tinker.calls import Running
from helpers.stub_tinker.gate import Gate
from helpers.stub_tinker.learner_status import Learners
from helpers.stub_tinker.model import Config
from helpers.stub_tinker.options import state_dir
from helpers.stub_tinker.server import application
from helpers.stub_tinker.service import Service
from helpers.stub_tinker.state_folder import Notes

FETCH_SECONDS = 15  # how long a server that stops keeps finished results for their clients
HOUSEKEEPING_SECONDS = 10  # between looks for sessions whose clients are gone

SWITCH_SECONDS = 0.0002  # until a thread that computes gets Python back from one that reads requests

Say = Callable[[str, argparse.Namespace, Service], None]


def serve(
    options: argparse.Namespace, keys: list[str], listener: socket.socket, folders: list[str], say: Say
) -> None:
    """Serve until stopped by a signal or by idleness.

    Args:
        keys: that clients may send, beside the one of the state folder.
        folders: of the base models.
        say: called once when the server is up, with its address, the options and the service.

    Raises:
        CourseError: a base model can't be served, or the state folder is taken.
    """
    _check_configs(folders)
    sys.setswitchinterval(SWITCH_SECONDS)
    if options.threads:
        torch.set_num_threads(options.threads)
    precision = None if options.precision == "auto" else getattr(torch, options.precision)
    state, token = state_dir(options), secrets.token_urlsafe(24)
    with state_folder.usable(state):
        notes = state_folder.take(state)
        key = own_key(state)
        access = Access([key, *keys], state_folder.secret(state), token)
        bases = {folder: Path(folder) for folder in folders}
        room = int(options.memory * GIB), int(options.disk * GIB)
        service = Service(state, bases, precision, access.earlier_owners, *room, options.renderers)
        roster = options.roster
        service.learners = Learners(access.names(roster.names if roster else {}), roster)
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    running = Running(service, access, lambda nonce: proof(key, nonce, url))
    server = Server(running, Gate(options.host, options.name), notes)
    service.engine.start()

    def announce() -> None:
        notes.write(url, folders, token)
        say(url, options, service)

    try:
        asyncio.run(_serve(server, listener, options.idle_exit, announce))
    finally:
        notes.remove()
    service.engine.stop()
    service.engine.join(timeout=60)


def _check_configs(folders: list[str]) -> None:
    """Raises:
    CourseError: a base model is of a kind that the stub can't serve.
    """
    for folder in folders:
        try:
            Config.read(Path(folder))
        except (ValueError, KeyError) as error:
            what = f"{folder}/config.json has no {error}" if isinstance(error, KeyError) else error
            raise CourseError(
                f"the stub can't serve this base model: {what}", "give it another with --base-model"
            ) from error


class Server(uvicorn.Server):
    """uvicorn with an orderly stop: its own drops the results that clients still wait for."""

    def __init__(self, running: Running, gate: Gate, notes: Notes):
        self.running, self.notes = running, notes
        super().__init__(
            uvicorn.Config(
                application(running, gate),
                timeout_graceful_shutdown=30,
                lifespan="off",
                ws="none",
                **connections.options(),
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal asks the server to stop; a second one ends it at once."""
        if self.running.stopping:
            self.notes.remove()
            os._exit(1)
        self.running.stopping = True


async def _serve(
    server: Server, listener: socket.socket, idle_exit: float, announce: Callable[[], None]
) -> None:
    """Serve until a signal comes, or until nobody has used the server for `idle_exit` seconds."""
    loop, running = asyncio.get_running_loop(), server.running
    running.last_request = loop.time()
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:  # from now on a signal is an orderly stop
        listener.listen(connections.QUEUE)
        announce()
    look = loop.time()
    while not task.done() and not running.stopping:
        await asyncio.wait([task], timeout=0.2)
        if loop.time() > look:
            await asyncio.to_thread(running.service.drop_lapsed_sessions)
            look = loop.time() + HOUSEKEEPING_SECONDS
        idle = loop.time() - running.last_request
        if idle_exit and idle > idle_exit and not running.service.engine.queued:
            break
    running.stopping = True
    server.notes.remove()  # who looks for a server now starts another, which waits for this one
    await _finish(running, task)
    server.should_exit = True
    await task
    print("stopped", flush=True)


async def _finish(running: Running, task: asyncio.Task) -> None:
    """Wait for accepted work, and then for clients to fetch its results."""
    loop = asyncio.get_running_loop()
    ready, said = loop.time(), ""
    while not task.done():
        waiting = running.service.waiting()
        left = sum(not future.done() for future in waiting)
        unfetched = sum(future.done() and future not in running.fetched for future in waiting)
        if left:
            ready = loop.time()
            text = f"finishing what was accepted ({left} left)"
        elif not unfetched or loop.time() - ready > FETCH_SECONDS:
            break
        else:
            text = f"waiting up to {FETCH_SECONDS} s for clients to fetch their results ({unfetched} left)"
        if text != said:
            print(f"stopping: {text}; a second signal ends it at once", flush=True)
            said = text
        await asyncio.sleep(0.1)
