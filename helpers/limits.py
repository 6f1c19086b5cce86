"""What the stub backend takes at most: it refuses more, and `course run` says so before it starts."""

MAX_RANK = 256  # of a LoRA adapter
MAX_SAMPLES = 1024  # answers to one prompt
