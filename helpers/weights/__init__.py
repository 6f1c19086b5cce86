"""From the trained checkpoint to a model that runs anywhere, with a proof that it is the same model.

    download_checkpoint_archive(service_client, "tinker://RUN/weights/final", "model-checkpoint.tar.gz")
    extract_archive("model-checkpoint.tar.gz", "model_weights")
    describe_adapter("model_weights")["rank"]

    adapter_to_peft(base_model, "model_weights", "peft_adapter")       # beside the base model, or
    merge_adapter(base_model, "model_weights", "merged_model")         # one with it

    trained = score_with_sampler(sampling_client, pairs)
    merged = score_with_transformers(AutoModelForCausalLM.from_pretrained("merged_model"), pairs, "merged")
    compare_logprobs(trained, [merged])["merged"]["passed"]

Importing this loads no torch; the functions load what they need.
"""

from helpers.weights.adapter import describe_adapter, lora_pairs
from helpers.weights.archive import extract_archive
from helpers.weights.download import download_checkpoint_archive
from helpers.weights.merge import merge_adapter
from helpers.weights.parity import compare_logprobs
from helpers.weights.peft_form import adapter_to_peft
from helpers.weights.scores import Scores, score_with_sampler, score_with_transformers, score_with_vllm

__all__ = [
    "Scores",
    "adapter_to_peft",
    "compare_logprobs",
    "describe_adapter",
    "download_checkpoint_archive",
    "extract_archive",
    "lora_pairs",
    "merge_adapter",
    "score_with_sampler",
    "score_with_transformers",
    "score_with_vllm",
]
