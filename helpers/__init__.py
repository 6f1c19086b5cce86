"""Helpers of the Tinker course: what the notebooks would otherwise have to explain away.

One road, one room for each part of it:

    connect() → load_data() → split_data() → build_datum() → evaluate_model()
              → download_checkpoint_archive() → merge_adapter() → compare_logprobs() → starting_vllm()

    data/          files and data sets → records → three parts                      notebook 01
    train/         the service, prompts as tokens, the plan and the log of training          02
    evaluate/      scores, graders, comparisons, benchmarks                                  03
    weights/       export, merge, proof that both are the same model                     04, 05
    serve/         vLLM                                                                      06
    runs/          what a run did, with which settings; its report; sweeps
    course/        the `course` command
    stub_tinker/   the stub Tinker backend
"""

import os

# A stub, a kernel and vLLM share the cores, and by default an idle OpenMP thread spins for a core that
# another process needs. Training tokens/s on two cores, alone and beside one busy process: default 650 and 40
# to 220, never spinning 425 and 350, spinning 20,000 times 615 and 150. They must be set before torch is
# loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
