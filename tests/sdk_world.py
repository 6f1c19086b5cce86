"""What the tests of the SDK's methods share: a server with a trained run, and how a method is called."""

import asyncio
import inspect
from pathlib import Path
from typing import Any

import tinker
from stub import Server, datums, train

HANG = 60  # seconds; the SDK repeats a refused request for minutes


class World:
    """A server with a trained run of one key, and a second key beside it."""

    def __init__(self, model: Path, state: Path):
        self.server = Server(model, state)
        self.service = tinker.ServiceClient(
            base_url=self.server.url,
            api_key="tml-first",
            project_id="lab",
            display_name="Course of Tuesday",
            user_metadata={"group": "a"},
        )
        self.rest, self.other = self.server.rest("tml-first"), self.server.rest("tml-other")
        self.stranger = self.server.connect("tml-other")
        self.client = self.service.create_lora_training_client(
            self.server.model, rank=8, seed=1, user_metadata={"try": "1"}
        ).result()
        self.run = self.client.model_id
        train(self.client, 2)
        self.state = self.client.save_state("state").result().path
        self.weights = self.client.save_weights_for_sampler("sampler").result().path
        self.external = self.client.save_weights_external("external").result().path
        self.sampler = self.service.create_sampling_client(model_path=self.weights).result()
        self.loss = self.client.forward(datums(), "cross_entropy").result().metrics["loss:sum"]
        self.session = self.service.holder.get_session_id()
        self.sampler_id = self.rest.get_session(self.session).result().sampler_ids[0]

    def name(self, start: str) -> str:
        self.count = getattr(self, "count", 0) + 1
        return f"{start}-{self.count}"

    def saved(self) -> str:
        return self.client.save_state(self.name("saved")).result().path

    def loss_of(self, client: tinker.TrainingClient) -> float:
        return client.forward(datums(), "cross_entropy").result().metrics["loss:sum"]

    def fresh(self) -> tinker.TrainingClient:
        return self.service.create_lora_training_client(self.server.model, rank=8, seed=1).result()


class Do:
    """Calls a method of the SDK, in the form under test: as it is, or its `_async` twin."""

    def __init__(self, is_async: bool):
        self.is_async = is_async

    def __call__(self, target: Any, name: str, *arguments: Any, **named: Any) -> Any:
        value = getattr(target, name + "_async" * self.is_async)(*arguments, **named)
        if inspect.iscoroutine(value):
            value = asyncio.run(asyncio.wait_for(value, HANG))
        while hasattr(value, "result"):
            value = value.result(timeout=HANG)
        return value


EXERCISES: dict[str, Any] = {}


def exercise(name: str):
    def register(function):
        EXERCISES[name] = function
        return function

    return register
