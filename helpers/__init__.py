"""Helpers of the Tinker course: what the notebooks would otherwise have to explain away.

One road, one module a stretch:

    connect() → load_json_files() → split_data() → build_datum() → evaluate_model()
              → download_checkpoint_archive() → merge_adapter() → compare_logprobs() → load_vllm()

Look in backend, data, prompts, training, evaluation, export, merge, parity and inference. runs holds the run folder, grading
the graders, stub_tinker the stub Tinker backend, cli the `course` command.
"""

import os

# A stub, a kernel and vLLM share the cores. By default each one's idle OpenMP threads spin for a core that another needs:
# under load that cost a factor of 10 to 20 (263 tokens/s against 15 in vLLM). It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
