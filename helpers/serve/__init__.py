"""Answers from the merged model: `transformers`, vLLM in this process, and vLLM as a server.

llm = load_vllm("merged_model")
answers = generate_with_vllm(llm, renderer, prompts, max_tokens=96)
with serve_vllm("merged_model", renderer=renderer) as server:
    answers = server.ask(test_set, renderer, max_tokens=96)
"""

from helpers.serve.answers import generate_with_transformers
from helpers.serve.engine import generate_with_vllm, load_vllm, measure_throughput
from helpers.serve.server import GUIDE_TEMPLATE, serve_vllm

__all__ = [
    "GUIDE_TEMPLATE",
    "generate_with_transformers",
    "generate_with_vllm",
    "load_vllm",
    "measure_throughput",
    "serve_vllm",
]
