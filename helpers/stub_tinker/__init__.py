"""A server that speaks the Tinker wire protocol to the unmodified SDK and really trains LoRA on this machine.

    python -m helpers.stub_tinker --base-model FOLDER

README.md says what it offers, how to operate it, and what each module holds.
"""
