"""The two models that Inspect can ask: Tinker's sampling client, and an OpenAI-compatible server such as
vLLM's.
"""

from typing import Any

from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model
from tinker_cookbook.eval.inspect_utils import DEFAULT_MAX_TOKENS, InspectAPIFromTinkerSampling

from helpers.errors import BackendError, DataError
from helpers.train.guide import GUIDE_STOP
from helpers.train.messages import renderer_name
from helpers.train.renderers import OTHER_FORMATS, register_renderers, renderer_for

register_renderers()


class _Sampler(InspectAPIFromTinkerSampling):
    """The cookbook's bridge calls every answer complete; this one knows which were cut off."""

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        output = await super().generate(input, tools, tool_choice, config)
        longest = config.max_tokens or DEFAULT_MAX_TOKENS
        if len(output.choices) == 1 and output.usage and output.usage.output_tokens >= longest:
            output.choices[0].stop_reason = "max_tokens"
        return output


def tinker_model(sampling_client: Any, renderer: Any = None) -> tuple[Model, str]:
    """Tinker's sampler for Inspect, and the name of the renderer that asks it.

    Args:
        renderer: its name, or a renderer; by default the one that the model was made for.

    Raises:
        DataError: there is no such renderer.
        ModelError: none is given, and none is known for the model.
    """
    base = sampling_client.get_base_model()
    name = named(renderer) or renderer_for(base, sampling_client.get_tokenizer())
    try:
        api = _Sampler(name, base, sampling_client=sampling_client)
    except ValueError as error:
        raise DataError(
            f"no renderer {name!r}: {error}",
            OTHER_FORMATS,
        ) from error
    return Model(api, GenerateConfig()), name


def served_model(server_url: str, api_key: str, wanted: str | None = None) -> Model:
    """A model of an OpenAI-compatible server, for Inspect.

    Args:
        server_url: with `/v1` at its end.
        wanted: which of the server's models or adapters; needed where it has more than one.

    Raises:
        BackendError: no such server answers.
        DataError: it has no such model, or several and none was named.
    """
    import httpx

    try:
        answer = httpx.get(
            f"{server_url.rstrip('/')}/models", headers={"Authorization": f"Bearer {api_key}"}, timeout=10
        )
        answer.raise_for_status()
        names = [entry["id"] for entry in answer.json()["data"]]
        name = wanted or names[0]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise BackendError(
            f"no OpenAI-compatible server answers at {server_url}: {error}",
            "start one (`vllm serve FOLDER`) and give its address with /v1 at the end",
        ) from error
    if name not in names or (wanted is None and len(names) > 1):
        raise DataError(f"{server_url} serves {', '.join(names)}", "say which one: model=…")
    return get_model(f"openai-api/vllm/{name}", base_url=server_url, api_key=api_key, memoize=False)


def stop_texts(renderer: Any) -> list[str] | None:
    """The guide's stop texts, for a server; chat templates end an answer with a token that it knows."""
    return list(GUIDE_STOP) if named(renderer) == "guide" else None


def named(renderer: Any) -> str:
    """The name of a renderer, given as its name, itself, or None (empty)."""
    return renderer or "" if renderer is None or isinstance(renderer, str) else renderer_name(renderer)
