"""A small server that speaks the Tinker wire protocol to the unmodified SDK and really trains LoRA on this machine.

    python -m helpers.stub_tinker --base-model FOLDER

Read it in this order: server.py (routes), service.py (what each request means), engine.py (the one thread that
computes), training.py and sampling.py (what it computes), model.py, kernels.py and lora.py (with what), store.py
(checkpoints). README.md says what it offers, how to operate it and how it works.
"""
