"""Routes of work: sessions, futures, training, saving and sampling. Each names its SDK call."""

import asyncio
import logging

from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response
from tinker import types

from helpers.stub_tinker import checkpoints, sample_requests, samplers, sessions, training_clients
from helpers.stub_tinker.bodies import MAX_BODY, MAX_METADATA, MAX_SAMPLE, json_object
from helpers.stub_tinker.calls import AS_JSON, AS_PROTO, BY_ITSELF, Call, Endpoint, clean, operation
from helpers.stub_tinker.errors import BadRequest, RequestError, WriteError
from helpers.stub_tinker.learner_status import PROGRESS, Told

log = logging.getLogger("stub_tinker")

LONG_POLL_SECONDS = 25  # the SDK gives a poll 45 s
REASONS = ("success", "errored", "interrupted")  # of a session's end


async def _client_config(call: Call) -> Response:
    chunks = {"parallel_fwdbwd_chunks": False}  # requests of one client then arrive in order
    return JSONResponse({**chunks, "sample_join_sampling_session": True})


async def _dynamic_config(call: Call) -> Response:
    return JSONResponse({"sample_cancel_enabled": True})


async def _heartbeat(call: Call) -> Response:
    call.service.touch(await call.text("session_id"), call.owner)
    return JSONResponse({"type": "session_heartbeat"})


async def _finish_session(call: Call) -> Response:
    body = await call.body()
    reason, detail = body.get("reason", {"type": "success"}), body.get("detail")
    if not isinstance(reason, dict) or reason.get("type") not in REASONS:
        raise BadRequest("reason.type must be success, errored or interrupted")
    if detail is not None and (not isinstance(detail, str) or len(detail) > MAX_METADATA):
        raise BadRequest(f"detail must be a text of at most {MAX_METADATA} characters")
    session = call.part("session")
    await call.beside(sessions.finish_session, call.service, call.owner, session, reason["type"], detail)
    return Response(status_code=204)


async def _telemetry(call: Call) -> Response:
    """What the SDK tells of itself is not kept; what the course's notebooks tell of their progress is."""
    raw = await call.raw(MAX_SAMPLE, AS_JSON)
    if PROGRESS.encode() in raw:
        for told in await call.read(len(raw), _told, raw):
            call.service.learners.of(call.owner).told(told)
    return JSONResponse({"status": "accepted"})


def _told(raw: bytes) -> list[Told]:
    """The notebooks' events among those of a body."""
    sent = json_object(raw).get("events")
    named = [event for event in sent if isinstance(event, dict)] if isinstance(sent, list) else []
    return [Told.model_validate(e.get("event_data")) for e in named if e.get("event_name") == PROGRESS]


async def _retrieve_future(call: Call) -> Response:
    """A long poll: 408 with `try_again` when the result takes longer; a failed operation is a 200."""
    future = call.service.results.find(await call.text("request_id"), call.owner)
    if not future.done():
        waiting = asyncio.wrap_future(future)
        # Or asyncio logs a failure as never retrieved.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([waiting], timeout=LONG_POLL_SECONDS)
    if not future.done():
        return JSONResponse({"type": "try_again", "queue_state": "active"}, 408)
    fetched = BackgroundTask(call.running.fetched.add, future)  # once the answer is sent
    error = future.exception()
    if error is None:
        result = future.result()
        return Response(result.body, media_type=result.media_type, background=fetched)
    return JSONResponse(failure(error), background=fetched)


def failure(error: BaseException) -> dict:
    """What a failed operation is reported as: the user's fault, or the server's, which the log tells too."""
    users = isinstance(error, (RequestError, ValueError)) and not isinstance(error, WriteError)
    if not users:
        log.error("a request failed: %s", error, exc_info=None if isinstance(error, WriteError) else error)
    message = clean(str(error) or type(error).__name__)
    return {"error": message, "category": "user" if users else "server"}


async def _cancel_future(call: Call) -> Response:
    request_id = await call.text("request_id")
    await call.beside(sample_requests.cancel, call.service, call.owner, request_id)
    return Response(status_code=204)


async def _get_info(call: Call) -> Response:
    return await call.answer(training_clients.get_info, await call.text("model_id"))


async def _forward_backward(call: Call) -> Response:
    return await call.answer(training_clients.forward_backward, await call.raw(MAX_BODY, AS_PROTO))


async def _get_sampler(call: Call) -> Response:
    return JSONResponse(samplers.get_sampler(call.service, call.owner, call.part("sampler")))


API = "/api/v1"
ENDPOINTS = [
    # Sessions
    Endpoint("POST", f"{API}/client/config", BY_ITSELF, _client_config),
    Endpoint("POST", f"{API}/client/dynamic_config", BY_ITSELF, _dynamic_config),
    Endpoint(
        "POST",
        f"{API}/create_session",
        BY_ITSELF,
        operation(types.CreateSessionRequest, sessions.create_session),
        new_work=True,
    ),
    Endpoint("POST", f"{API}/session_heartbeat", BY_ITSELF, _heartbeat),
    Endpoint("POST", API + "/sessions/{session}/finish", "ServiceClient.close", _finish_session),
    Endpoint("POST", f"{API}/telemetry", BY_ITSELF, _telemetry),
    # Futures: whoever waits for a result polls, and says when it waits no more
    Endpoint("POST", f"{API}/retrieve_future", BY_ITSELF, _retrieve_future),
    Endpoint("POST", f"{API}/cancel_future", BY_ITSELF, _cancel_future),
    # Training clients
    Endpoint(
        "POST",
        f"{API}/create_model",
        "ServiceClient.create_lora_training_client",
        operation(types.CreateModelRequest, training_clients.create_model),
        new_work=True,
    ),
    Endpoint("POST", f"{API}/get_info", "TrainingClient.get_info", _get_info),
    Endpoint(
        "POST",
        f"{API}/forward_backward",
        "TrainingClient.forward, TrainingClient.forward_backward, TrainingClient.forward_backward_custom",
        _forward_backward,
        new_work=True,
    ),
    Endpoint(
        "POST",
        f"{API}/optim_step",
        "TrainingClient.optim_step",
        operation(types.OptimStepRequest, training_clients.optim_step),
        new_work=True,
    ),
    # Saving and loading
    Endpoint(
        "POST",
        f"{API}/save_weights",
        "TrainingClient.save_state",
        operation(types.SaveWeightsRequest, checkpoints.save_weights),
        new_work=True,
    ),
    Endpoint(
        "POST",
        f"{API}/load_weights",
        "TrainingClient.load_state, TrainingClient.load_state_with_optimizer, "
        "ServiceClient.create_training_client_from_state, "
        "ServiceClient.create_training_client_from_state_with_optimizer",
        operation(types.LoadWeightsRequest, checkpoints.load_weights),
        new_work=True,
    ),
    Endpoint(
        "POST",
        f"{API}/save_weights_for_sampler",
        "TrainingClient.save_weights_for_sampler, TrainingClient.save_weights_and_get_sampling_client",
        operation(types.SaveWeightsForSamplerRequest, checkpoints.save_weights_for_sampler),
        new_work=True,
    ),
    Endpoint(
        "POST",
        f"{API}/save_weights_external",
        "TrainingClient.save_weights_external",
        operation(types.SaveWeightsExternalRequest, checkpoints.save_weights_external),
        new_work=True,
    ),
    # Sampling
    Endpoint(
        "POST",
        f"{API}/create_sampling_session",
        "ServiceClient.create_sampling_client, TrainingClient.create_sampling_client, SamplingClient.create",
        operation(types.CreateSamplingSessionRequest, samplers.create_sampling_session),
        new_work=True,
    ),
    Endpoint(
        "POST",
        f"{API}/join_sampling_session",
        "SamplingClient.from_sampler_handle",
        operation(types.JoinSamplingSessionRequest, samplers.join_sampling_session),
        new_work=True,
    ),
    Endpoint(
        "POST",
        f"{API}/asample",
        "SamplingClient.sample, SamplingClient.compute_logprobs",
        operation(types.SampleRequest, sample_requests.sample, MAX_SAMPLE),
        new_work=True,
    ),
    Endpoint("GET", API + "/samplers/{sampler}", "RestClient.get_sampler", _get_sampler),
]
