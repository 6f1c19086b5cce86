"""From the trained checkpoint to a model that runs anywhere, with a proof that it is the same model.

    download_checkpoint_archive(service_client, "tinker://RUN/weights/final", "model-checkpoint.tar.gz")
    extract_archive("model-checkpoint.tar.gz", "model_weights")
    describe_adapter("model_weights")["rank"]

    adapter_to_peft(base_model, "model_weights", "peft_adapter")       # beside the base model, or
    merge_adapter(base_model, "model_weights", "merged_model")         # one with it

    trained = score_with_sampler(sampling_client, pairs)
    merged = score_with_transformers(load_base("merged_model"), pairs)
    noise = logit_noise("float32", "float32", layers=30, hidden=576, logit_std=merged.logit_std)
    compare_logprobs(trained, merged, noise)["passed"]

Importing this loads no torch; the functions load what they need.
"""

from helpers.weights.adapter import describe_adapter, lora_pairs, read_adapter
from helpers.weights.archive import extract_archive
from helpers.weights.base_model import load_base
from helpers.weights.download import download_checkpoint_archive
from helpers.weights.merge import merge_adapter
from helpers.weights.parity import check_same_tokenizer, compare_logprobs, logit_noise, measured_noise
from helpers.weights.peft_form import adapter_to_peft, load_peft
from helpers.weights.scores import Scores, score_with_sampler, score_with_transformers, score_with_vllm

__all__ = [
    "Scores",
    "adapter_to_peft",
    "check_same_tokenizer",
    "compare_logprobs",
    "describe_adapter",
    "download_checkpoint_archive",
    "extract_archive",
    "load_base",
    "load_peft",
    "logit_noise",
    "lora_pairs",
    "measured_noise",
    "merge_adapter",
    "read_adapter",
    "score_with_sampler",
    "score_with_transformers",
    "score_with_vllm",
]
