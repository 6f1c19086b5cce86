"""How many learners a machine carries, and how long they take."""

import os

from helpers.memory import machine_memory
from helpers.text import minutes

# From helpers/stub_tinker/README.md, "Speed" (make bench of 2026-11-27, 2 cores): memory while it trains 16
# × 256 tokens, and what a client with a LoRA of rank 32 and its optimizer adds; tokens a second that 16
# clients train together, and sample together, each with weights of its own.
TRAINING_SERVER_BYTES = 1.79 * 2**30
LEARNER_BYTES = 196 * 2**20
MEASURED_CORES, TRAINED_PER_SECOND, SAMPLED_PER_SECOND = 2, 407, 166
# What notebook 02 asks of the server, in tokens: course run --dry-run --until train.
TRAINED, SAMPLED = 72526, 11925


def capacity(learners: int) -> str:
    """How many learners this machine carries, and how long they take for notebook 02."""
    free, cores = machine_memory()[1], os.cpu_count()
    fit = max(0, int((free - TRAINING_SERVER_BYTES) / LEARNER_BYTES))
    alone = TRAINED / TRAINED_PER_SECOND + SAMPLED / SAMPLED_PER_SECOND
    lines = [
        f"memory: {free / 2**30:.1f} GiB are free, enough for about {fit} learners who train at once",
        f"        ({TRAINING_SERVER_BYTES / 2**30:.1f} GiB for the server, {LEARNER_BYTES / 2**20:.0f} MiB "
        "for each: the course's model, rank 32)",
        f"time:   {learners} learners at once train notebook 02 in about {minutes(learners * alone)} on "
        f"{MEASURED_CORES} cores; this machine has {cores}",
        f"        (for each {TRAINED:,} tokens trained and {SAMPLED:,} sampled, at {TRAINED_PER_SECOND} and "
        f"{SAMPLED_PER_SECOND} tokens/s,",
        "        measured with 16 clients; the status page says it for the speed of this machine)",
    ]
    if learners > fit:
        lines.append(
            f"note:   {learners} learners may need more memory than is free: let them work in groups, or set "
            "a smaller rank"
        )
    return "\n".join(lines)
