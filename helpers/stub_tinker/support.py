"""What of the SDK the stub offers: plain data, which the server, the README and the tests read.

`python -m helpers.stub_tinker.support` prints it as Markdown tables. A name ending in `[_async]` stands for
both forms.
"""

import sys
from pathlib import Path

SUPPORTED = {
    "ServiceClient.close": "frees the session's memory at once; the reason is kept",
    "ServiceClient.copy_weights": (
        "needs `project_id` in the ServiceClient or TINKER_PROJECT_ID: a label, any name will do"
    ),
    "ServiceClient.create_custom_loss": (
        "the client traces and runs the loss; pass its handle to `forward_backward_custom`"
    ),
    "ServiceClient.create_lora_training_client[_async]": (
        "any base model the server was started with, rank 1 to 256; AdamW, not `dimuon`"
    ),
    "ServiceClient.create_rest_client": "",
    "ServiceClient.create_sampling_client[_async]": "a base model, or a checkpoint of one's own or published",
    "ServiceClient.create_training_client_from_state[_async]": "own or published checkpoints",
    "ServiceClient.create_training_client_from_state_with_optimizer[_async]": (
        "goes on where the saved run was"
    ),
    "ServiceClient.get_console_url": (
        "the SDK makes this address itself: it leads to the hosted console, which knows nothing of the stub"
    ),
    "ServiceClient.get_server_capabilities[_async]": "base models and their context length",
    "ServiceClient.get_telemetry": "the server keeps what notebooks tell of their progress only",
    "ServiceClient.holder": "",
    "TrainingClient.create_sampling_client[_async]": "",
    "TrainingClient.forward[_async]": "",
    "TrainingClient.forward_backward[_async]": "text in, losses as the SDK defines them; see How it works",
    "TrainingClient.forward_backward_custom[_async]": (
        "the loss runs in the client, the gradient on the server"
    ),
    "TrainingClient.get_console_url": "as ServiceClient.get_console_url",
    "TrainingClient.get_info[_async]": "",
    "TrainingClient.get_telemetry": "as ServiceClient.get_telemetry",
    "TrainingClient.get_tokenizer": "read from the folder of the base model, which client and server share",
    "TrainingClient.load_state[_async]": "",
    "TrainingClient.load_state_with_optimizer[_async]": "",
    "TrainingClient.optim_step[_async]": "AdamParams",
    "TrainingClient.save_state[_async]": "with name, ttl, overwrite and metadata",
    "TrainingClient.save_weights_and_get_sampling_client[_async]": (
        "snapshot or inflight; a session's three last used samplers are in memory, the others on disk"
    ),
    "TrainingClient.save_weights_external[_async]": "PEFT files, encrypted for age recipients if asked",
    "TrainingClient.save_weights_for_sampler[_async]": "",
    "SamplingClient.compute_logprobs[_async]": "",
    "SamplingClient.create": "",
    "SamplingClient.from_sampler_handle": "with the key that made the handle, while its session lives",
    "SamplingClient.get_base_model[_async]": "",
    "SamplingClient.get_sampler_handle": "",
    "SamplingClient.get_telemetry": "as ServiceClient.get_telemetry",
    "SamplingClient.get_tokenizer": "as TrainingClient.get_tokenizer",
    "SamplingClient.on_queue_state_change": "the SDK calls it; the stub's queue is always active",
    "SamplingClient.sample[_async]": "`max_tokens` is cut to what is left of the context",
    "RestClient.copy_weights[_async]": (
        "into a new run of the caller; `destination_project_id` is a label, any name will do"
    ),
    "RestClient.delete_checkpoint[_async]": "",
    "RestClient.delete_checkpoint_from_tinker_path[_async]": "",
    "RestClient.export_session_trace[_async]": (
        "its requests that were done since the server's start, of a key's latest 20,000"
    ),
    "RestClient.get_current_checkpoint_storage_usage[_async]": "bytes and counts by project label; no costs",
    "RestClient.get_external_weights_urls[_async]": "signed URLs of this checkpoint, valid for an hour",
    "RestClient.get_sampler[_async]": "while its session lives",
    "RestClient.get_server_capabilities": "",
    "RestClient.get_session[_async]": "ended sessions too; their samplers are gone",
    "RestClient.get_telemetry": "as ServiceClient.get_telemetry",
    "RestClient.get_training_run[_async]": "`accessible` adds runs of other keys with a published checkpoint",
    "RestClient.get_training_run_by_tinker_path[_async]": "",
    "RestClient.get_weights_info_by_tinker_path": "",
    "RestClient.list_checkpoints[_async]": "for another key's run, only published ones",
    "RestClient.list_sessions[_async]": "newest first, ended ones too",
    "RestClient.list_training_runs[_async]": "newest first, in pages, by project label if asked",
    "RestClient.list_user_checkpoints[_async]": "newest first, in pages",
    "RestClient.publish_checkpoint_from_tinker_path[_async]": (
        "any key of this server can then read, sample and load it by its path"
    ),
    "RestClient.search_sessions": "",
    "RestClient.set_checkpoint_ttl_from_tinker_path[_async]": "1 second to 10 years",
    "RestClient.unpublish_checkpoint_from_tinker_path[_async]": "",
}

NOT_OFFERED = {
    "RestClient.assign_session_project[_async]": (
        "there are no projects here: a session keeps the label it began with"
    ),
    "RestClient.get_audit_log[_async]": "there is no organization to audit",
    "RestClient.get_billing_usage[_async]": "nothing here costs money",
    "RestClient.whoami": (
        "a key has no name here; the SDK itself refuses, since it would read the answer from a JWT"
    ),
}

# Parts of methods that are supported otherwise.
NOT_OFFERED_OPTIONS = {
    "weights_access_token": "instead, the owner of a checkpoint can publish it",
}

# Options of OpenAI's API, by what takes them. Any other is refused, unless its value changes nothing.
OPENAI_OPTIONS = {
    "model": "a base model, or a `tinker://` path of one's own or published",
    "messages": "chat: text only, of `system` (or `developer`), `user` and `assistant`",
    "renderer": "chat: a name of `tinker_cookbook`'s, `guide` or `template`; no option of OpenAI's",
    "prompt": "completions: a text, token ids, or a list of either",
    "max_tokens": "cut to what is left of the context; 16 for completions if left out, else all of it",
    "max_completion_tokens": "chat: the same",
    "temperature": "",
    "top_p": "",
    "top_k": "no option of OpenAI's",
    "seed": "the same seed gives the samples that it gives through the SDK",
    "stop": "up to 64 texts; the end of text, and a renderer's own stop, always end an answer",
    "n": "up to 1,024",
    "logprobs": "chat: true or false; completions: a number up to 20. Before temperature and top-p",
    "top_logprobs": "chat: up to 20",
    "echo": "completions, not streamed: the prompt first, with its logprobs if they are asked for",
    "stream": "",
    "stream_options": "`include_usage`",
    "user": "taken, and not used",
    "return_token_ids": "`token_ids` and `prompt_token_ids` in each choice; no option of OpenAI's",
}


def expand(table: dict[str, str]) -> dict[str, str]:
    """The table with `[_async]` written out."""
    return {
        name: note
        for key, note in table.items()
        for name in dict.fromkeys((key.replace("[_async]", ""), key.replace("[_async]", "_async")))
    }


def reason(sdk_method: str) -> str:
    """Why a method of the SDK is not offered, or nothing."""
    return expand(NOT_OFFERED).get(sdk_method, "")


def markdown() -> str:
    rows = [(name, "yes", note) for name, note in SUPPORTED.items()]
    rows += [(name, "no", note) for name, note in NOT_OFFERED.items()]
    rows += [(f"`{name}=` of any method", "no", note) for name, note in NOT_OFFERED_OPTIONS.items()]
    lines = ["| SDK method | offered | |", "|---|---|---|"]
    return "\n".join(
        lines
        + [
            f"| {name if name.startswith('`') else f'`{name}`'} | {offered} | {note} |"
            for name, offered, note in rows
        ]
    )


def openai_markdown() -> str:
    rows = [f"| `{name}` | {note} |" for name, note in OPENAI_OPTIONS.items()]
    return "\n".join(["| option | |", "|---|---|", *rows])


TABLES = {"support": markdown, "openai": openai_markdown}


def main() -> int:
    """Print the tables; with `--write`, put them between their marks in the README."""
    readme = Path(__file__).with_name("README.md")
    text = readme.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        after = rest.partition(f"<!-- /{name} -->")[2]
        text = f"{before}<!-- {name} -->\n{table()}\n<!-- /{name} -->{after}"
        print(table())
    if sys.argv[1:] == ["--write"]:
        readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
