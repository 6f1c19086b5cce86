"""The loop of notebook 02 with the Tinker SDK alone, to copy and change.

    TINKER_API_KEY=tml-… python docs/sft.py data/word_problems.json Qwen/Qwen3-8B

The file is a JSON list of {"instruction": …, "output": …}. For a stub (`python -m helpers.stub_tinker`), set
TINKER_BASE_URL=http://127.0.0.1:8765 and any key that starts with tml-; the model is the folder it prints.
"""

import json
import random
import sys
from pathlib import Path

import tinker
from tinker import types

BATCH, RATE = 8, 1e-3

rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
random.Random(42).shuffle(rows)
held_out = rows.pop()
service = tinker.ServiceClient()
trainer = service.create_lora_training_client(sys.argv[2], rank=32, seed=42, train_unembed=False).result()
tokenizer = trainer.get_tokenizer()


def prompt_tokens(row: dict[str, str]) -> list[int]:
    return tokenizer.encode(f"Instruction: {row['instruction']}\nResponse:")


def datum(row: dict[str, str]) -> types.Datum:
    """Each target is the token after the one that is read; only those of the answer have weight 1."""
    prompt = prompt_tokens(row)
    answer = tokenizer.encode(f" {row['output']}\n\n", add_special_tokens=False)
    weights = [0] * (len(prompt) - 1) + [1] * len(answer)
    inputs = {"target_tokens": [*prompt, *answer][1:], "weights": weights}
    return types.Datum(types.ModelInput.from_ints([*prompt, *answer][:-1]), inputs)


for start in range(0, len(rows), BATCH):
    batch = [datum(row) for row in rows[start : start + BATCH]]
    forward = trainer.forward_backward(batch, "cross_entropy")
    update = trainer.optim_step(types.AdamParams(learning_rate=RATE * (1 - start / len(rows))))
    loss, _ = forward.result().metrics["loss:sum"], update.result()
    answer_tokens = sum(sum(example.loss_fn_inputs["weights"].tolist()) for example in batch)
    print(f"{start + len(batch)} examples: {loss / answer_tokens:.3f} nats per answer token", flush=True)

print("to train on:", trainer.save_state("sft").result().path)
path = trainer.save_weights_for_sampler("sft").result().path
print("to sample:", path)
sampler = service.create_sampling_client(model_path=path).result()
prompt = types.ModelInput.from_ints(prompt_tokens(held_out))
params = types.SamplingParams(max_tokens=96, temperature=0.0, stop=["\n\n"])
[sequence] = sampler.sample(prompt, 1, params).result().sequences
print(held_out["instruction"], "→", tokenizer.decode(sequence.tokens).strip())
