"""Requests to a stub as the SDK sends them, without its retries: of a killed server, the next one fails."""

import http.client
import json

import numpy as np
from stub import datums
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

API = "/api/v1"
SESSION = {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0", "type": "create_session"}
LORA = {"rank": 4, "seed": 1, "train_unembed": False}


class Wire:
    """One connection, and on it one session with one training client."""

    def __init__(self, url: str):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self.seq = 0

    def request(self, method: str, route: str, body: dict | bytes | None = None) -> bytes:
        kind = "application/x-protobuf" if isinstance(body, bytes) else "application/json"
        content = body if isinstance(body, bytes) or body is None else json.dumps(body)
        headers = {"Content-Type": kind, "X-API-Key": "tml-test"}
        self.connection.request(method, f"{API}/{route}", content, headers)
        response = self.connection.getresponse()
        answer = response.read()
        assert response.status in (200, 204, 408), (route, response.status, answer)
        return b"" if response.status == 408 else answer

    def post(self, route: str, body: dict | bytes) -> bytes:
        return self.request("POST", route, body)

    def future(self, route: str, body: dict | bytes) -> bytes:
        """The result of an operation."""
        request_id = json.loads(self.post(route, body))["request_id"]
        while not (content := self.post("retrieve_future", {"request_id": request_id})):
            pass
        return content

    def start(self, model: str) -> str:
        """Make a session and a training client of it; returns the id of the client."""
        self.session = json.loads(self.post("create_session", SESSION))["session_id"]
        made = self.future("create_model", self.model_body(model, 0))
        self.model = json.loads(made)["model_id"]
        return self.model

    def model_body(self, model: str, number: int) -> dict:
        return {
            "session_id": self.session,
            "model_seq_id": number,
            "base_model": model,
            "lora_config": LORA,
        }

    def step(self, rate: float = 1e-2) -> None:
        self.future("forward_backward", self.datums_body())
        self.future("optim_step", self.step_body(rate))

    def step_body(self, rate: float) -> dict:
        return {"model_id": self.model, "seq_id": self.next(), "adam_params": {"learning_rate": rate}}

    def next(self) -> int:
        self.seq += 1
        return self.seq

    def datums_body(self, forward_only: bool = False) -> bytes:
        message = forward_backward_request_to_proto(
            ForwardBackwardRequest(
                forward_backward_input=ForwardBackwardInput(data=datums(2, 8), loss_fn="cross_entropy"),
                model_id=self.model,
                seq_id=self.next(),
            )
        )
        message.forward_only = forward_only
        return message.SerializeToString()

    def logprobs(self) -> np.ndarray:
        answer = self.future("forward_backward", self.datums_body(forward_only=True))
        outputs = deserialize_forward_backward_output(answer).loss_fn_outputs
        return np.concatenate([item["logprobs"].to_numpy() for item in outputs])
