"""Helpers of the Tinker course: what the notebooks would otherwise have to explain away.

One road, one module a stretch:

    connect() → load_data() → split_data() → build_datum() → evaluate_model()
              → download_checkpoint_archive() → merge_adapter() → compare_logprobs() → load_vllm()

Look in backend, data, prompts, training, evaluation, export, merge, parity and inference. runs holds the run
folder, tasks what makes an answer right, grading the graders, stub_tinker the stub Tinker backend, cli the
`course` command, sweep many runs with different settings.
"""

import os

# A stub, a kernel and vLLM share the cores, and by default an idle OpenMP thread spins for a core that
# another process needs. Training tokens/s on two cores, alone and beside one busy process: default 650 and 40
# to 220, never spinning 425 and 350, spinning 20,000 times 615 and 150. They must be set before torch is
# loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
