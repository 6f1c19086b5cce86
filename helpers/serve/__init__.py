"""Answers from the merged model: `transformers`, vLLM from Python, and vLLM as a server.

with starting_vllm("merged_model") as on_cpu:
    from vllm import LLM

    llm = LLM(model="merged_model", enforce_eager=on_cpu)
answers = generate_with_vllm(llm, renderer, prompts, max_tokens=96)
with serve_vllm("merged_model") as server:
    answers = server.ask(test_set, renderer, max_tokens=96)
"""

from helpers.serve.answers import generate_with_transformers
from helpers.serve.engine import generate_with_vllm, measure_throughput, starting_vllm
from helpers.serve.server import serve_vllm

__all__ = [
    "generate_with_transformers",
    "generate_with_vllm",
    "measure_throughput",
    "serve_vllm",
    "starting_vllm",
]
