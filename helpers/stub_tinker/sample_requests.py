"""One request to sample: its jobs for the engine, and one future for all of them."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tinker import types

from helpers.limits import MAX_SAMPLES
from helpers.stub_tinker import wire_sampling as wire
from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.jobs import PromptScores, SampleJob, ScoreJob, Sequence
from helpers.stub_tinker.lora import Adapter
from helpers.stub_tinker.results import PROTO, Result
from helpers.stub_tinker.samplers import adapter_of
from helpers.stub_tinker.service import SamplingSession, Service
from helpers.stub_tinker.timeline import SAMPLING

Job = SampleJob | ScoreJob
Targets = tuple | None  # what `wire.prompt_targets` made
Answer = Callable[[list[Sequence], PromptScores | None, Targets], Any]


class SampleFuture(Future):
    """Of a sampling request, which can be cancelled by its jobs."""

    def __init__(self, base: str, jobs: list[Job]):
        super().__init__()
        self.base, self.jobs = base, jobs


def sample(service: Service, owner: str, request: types.SampleRequest) -> dict:
    """Samples, and logprobs of the prompt if the request asks for them."""
    if request.sampling_session_id is None or request.seq_id is None:
        raise BadRequest("asample needs sampling_session_id and seq_id: make a sampling client")
    sampler = service.sampler(request.sampling_session_id, owner)
    service.touch(sampler.session, owner)
    request_id = f"{request.sampling_session_id}:{request.seq_id}"
    # Before `once`, which lets one request at a time in: these wait for the engine.
    service.load(sampler.base)
    adapter = adapter_of(service, sampler)

    if not 1 <= request.num_samples <= MAX_SAMPLES:
        raise BadRequest(f"num_samples must be 1 to {MAX_SAMPLES}, got {request.num_samples}")

    def answer(sequences: list[Sequence], scores: PromptScores | None, targets: Targets) -> Result:
        return Result(wire.sample_response(sequences, scores, bool(request.prompt_logprobs), targets), PROTO)

    def start() -> Future:
        future = begin(service, request, sampler, adapter, answer)
        future.add_done_callback(lambda _: future.jobs.clear())  # it is kept, their adapters need not be
        service.usage.count(sampler.session, requests=1)
        return future

    service.results.once(request_id, owner, start)
    return {
        "request_id": request_id,
        "sample_sequence_ids": [f"{request_id}:{i}" for i in range(request.num_samples)],
    }


def cancel(service: Service, owner: str, request_id: str) -> None:
    """Stop a sampling request that its client has given up. Any other goes on: it may change weights."""
    future = service.results.find(request_id, owner)
    if isinstance(future, SampleFuture) and not future.done():
        service.engine.cancel(future.base, future.jobs)


def begin(
    service: Service,
    request: types.SampleRequest,
    sampler: SamplingSession,
    adapter: Adapter | None,
    answer: Answer,
) -> SampleFuture:
    """Queue the jobs of a request.

    Args:
        answer: makes the future's result of the samples, the prompt's scores and its targets.

    Raises:
        BadRequest: the request is wrong, or its key has too much under way.
    """
    model = service.load(sampler.base)[0]
    limit, vocab = model.config.max_length, model.config.vocab
    prompt = wire.prompt_tokens(request.prompt, vocab, limit)
    wire.check_sampling(request)
    new = min(request.sampling_params.max_tokens or limit, limit - len(prompt))
    with service.budgets.hold(sampler.owner, **wire.cost(request, len(prompt), new)) as hold:
        jobs: list[Job] = [*_sample_jobs(service, request, sampler, adapter, prompt, new)]
        targets = wire.prompt_targets(request.target_prompt_logprobs, len(prompt), vocab)
        if request.prompt_logprobs or request.topk_prompt_logprobs or targets or request.prompt_alt_tokens_k:
            score = ScoreJob(
                sampler.session,
                prompt,
                adapter,
                request.prompt_logprobs_last_n or len(prompt) - 1,
                request.topk_prompt_logprobs,
                targets and targets[0],
                request.prompt_alt_tokens_k,
                request.sampling_params.temperature,
                request.sampling_params.seed,
                owner=sampler.owner,
            )
            jobs.append(score)
        future = SampleFuture(sampler.base, jobs)
        hold.until(future)
    noted = service.timeline.note(sampler.owner, sampler.session, SAMPLING, "sample")
    future.add_done_callback(noted.end)
    service.learners.of(sampler.owner).watch(sampler.session, "sample", future)
    _gather(service, sampler, future, lambda sequences, scores: answer(sequences, scores, targets))
    return future


def _sample_jobs(
    service: Service,
    request: types.SampleRequest,
    sampler: SamplingSession,
    adapter: Adapter | None,
    prompt: list[int],
    new: int,
) -> list[SampleJob]:
    running, params = service.load(sampler.base)[1], request.sampling_params
    stop_tokens, stop_strings = wire.stops(params.stop, running.tokenizer.eos_token_id)
    return [
        SampleJob(
            sampler.session,
            prompt,
            new,
            params.temperature,
            params.top_k,
            params.top_p,
            None if params.seed is None else _seed(params.seed, number),
            stop_tokens,
            stop_strings,
            adapter,
            request.topk_sample_logprobs,
            owner=sampler.owner,
        )
        for number in range(request.num_samples)
    ]


def _seed(seed: int, number: int) -> int:
    """The seed of a request's sample by its number: neighbouring seeds must not share samples."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8]) >> 1


def _gather(
    service: Service,
    sampler: SamplingSession,
    gathered: SampleFuture,
    answer: Callable[[list[Sequence], PromptScores | None], Any],
) -> None:
    """Queue the jobs of a request, whose one future ends when they all have."""
    jobs = gathered.jobs
    left = len(jobs)

    def done(_: Future) -> None:  # called on the engine's thread, one job at a time
        nonlocal left
        left -= 1
        if left:
            return
        try:
            results = [job.future.result() for job in jobs]
            scores = results.pop() if isinstance(jobs[-1], ScoreJob) else None
            service.usage.count(sampler.session, sampled=sum(len(s.tokens) for s in results))
            gathered.set_result(answer(results, scores))
        except Exception as error:  # one failed job fails the request
            gathered.set_exception(error)

    for job in jobs:
        job.future.add_done_callback(done)
    for job in jobs:
        service.engine.sample(sampler.base, job)
