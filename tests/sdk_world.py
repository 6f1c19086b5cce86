"""What the tests of the SDK's methods share: a server with a trained run, and how a method is called."""

import asyncio
import inspect
from typing import Any

import pytest
import tinker
from stub import Remote, datums, train

HANG = 60  # seconds; the SDK repeats a refused request for minutes


class World:
    """A trained run of one key of a server, and a second key beside it, if the server has one for us.

    Attributes:
        project: a label that the server takes for projects; None if nobody said which.
        closeness: relative, of two computations of the same loss.
    """

    def __init__(self, server: Remote, keys: tuple[str, ...], project: str | None, closeness: float):
        self.server, self.key, self.project, self.closeness = server, keys[0], project, closeness
        self.stranger_keys = keys[1:2]
        self.service = tinker.ServiceClient(
            base_url=server.url,
            api_key=self.key,
            project_id=project,
            display_name="Course of Tuesday",
            user_metadata={"group": "a"},
        )
        self.rest = server.rest(self.key)
        self.others = [server.rest(key) for key in self.stranger_keys]
        self._strangers = [server.connect(key) for key in self.stranger_keys]
        self.client = self.service.create_lora_training_client(
            server.model, rank=8, seed=1, user_metadata={"try": "1"}
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

    @property
    def other(self) -> tinker.RestClient:
        return self.others[0] if self.others else pytest.skip("needs a second key")

    @property
    def stranger(self) -> tinker.ServiceClient:
        return self._strangers[0] if self._strangers else pytest.skip("needs a second key")

    def label(self) -> str:
        return self.project or pytest.skip("needs a project: TINKER_PROJECT_ID")

    def near(self, value: Any) -> Any:
        return pytest.approx(value, rel=self.closeness)

    def close(self) -> None:
        for service in (self.service, *self._strangers):
            service.close("success").result()

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
