"""The base model's answers of another run: taken over and graded again, or refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from commands import assert_one_message, course, tree
from runs_for_tests import begin_stage, finish_stage, make_run
from test_evaluation import Client

from helpers import plots
from helpers.errors import RunError
from helpers.evaluate.controls import Control
from helpers.evaluate.evaluation import score_outputs
from helpers.evaluate.promptings import CHAT, TRAINING, Prompting, base_formats, strongest
from helpers.evaluate.score import Score
from helpers.evaluate.tasks import Task
from helpers.files import read_jsonl, write_json, write_jsonl
from helpers.runs.base_answers import OTHERS, SAMPLES, asked_of_base, base_answers, taken_over
from helpers.runs.manifest import BaseAsked
from helpers.runs.result_files import EVALUATION
from helpers.runs.results import save_evaluation
from helpers.runs.run import Run
from helpers.runs.settings import settings_of
from helpers.runs.stage import Stage
from helpers.train.guide import guide_prompt
from helpers.train.renderers import get_renderer, prompt_tokens

pytestmark = pytest.mark.usefixtures("folder")


class Letters:
    """A tokenizer of one token a letter, as far as prompts need it, without a chat template."""

    eos_token_id: int | None = None

    def decode(self, tokens: list[Any], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, tokens))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(map(ord, text))


class Talkative(Letters):
    """One with a chat template; `<` ends a turn."""

    chat_template, all_special_ids, eos_token_id = "…", [ord("<")], ord("<")

    def apply_chat_template(self, turns: list[dict], tokenize: bool = True, **_: Any) -> Any:
        text = "".join(f"{turn['role'][0]}>{turn['content']}<" for turn in turns)
        return self.encode(text) if tokenize else text


FORMATS = {CHAT: get_renderer("guide", Talkative()), TRAINING: get_renderer("guide", Letters())}


TEST_SET = [
    {
        "instruction": f"What is {n} + {n}?",
        "input": "",
        "output": f"Final answer: {2 * n}",
        "answer": str(2 * n),
    }
    for n in range(3)
]


def service(**context: int) -> Any:
    """A backend that says how long the context of its models is, and no more."""
    offered = [SimpleNamespace(model_name=name, max_context_length=most) for name, most in context.items()]
    found = SimpleNamespace(result=lambda: SimpleNamespace(supported_models=offered))
    rest = SimpleNamespace(get_server_capabilities=lambda: found)
    return SimpleNamespace(kind="stub", url="http://127.0.0.1:1", rest_client=rest)


BACKEND = service()


def asked_by(run: Run, **settings: Any) -> BaseAsked:
    return asked_of_base(Stage(run, "evaluate", settings_of("evaluate", settings)), BACKEND, "guide")


def asking_run(name: str, test_set: list[dict[str, Any]] = TEST_SET, **settings: Any) -> Run:
    """A run that asked the base model; it got the first one right, and the file says that it got none."""
    run = make_run(name, done=("split", "train"))
    write_json(run.file("split/test_set.json"), test_set)
    finish_stage(run, "evaluate", results={"base_asked": asked_by(run, **settings)}, **settings)
    for name, file in ((CHAT, SAMPLES), (TRAINING, OTHERS)):
        samples = [
            {
                "prompting": name,
                "index": i,
                "prompt": guide_prompt(row),
                "output": "Final answer: 0" if name == CHAT else "no",
                "score": False,
                "stop_reason": "stop",
                "tokens": 9,
                "mean_logprob": -1,
            }
            for i, row in enumerate(test_set)
        ]
        write_jsonl(run.file(f"evaluate/{file}"), samples)
    return run


def test_answers_are_taken_over_and_graded_again():
    run = asking_run("one")
    asked = asked_by(run, max_in_flight=8, seed=7)  # neither matters to greedy answers
    results, from_run = taken_over("one", asked, TEST_SET, FORMATS, Task())
    found = results[CHAT]
    assert (found["correct"], found["total"], found["tokens"], from_run) == (1, 3, 0, "one")
    assert results[TRAINING]["correct"] == 0 and strongest(Task(), results) == CHAT
    first = found["samples"][0]
    assert first["score"] and first["output"] == "Final answer: 0" and first["tokens"] == 9


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"max_tokens": 32}, "max_tokens 32 there, 96 here"),
        ({"temperature": 0.7}, "temperature 0.7 there, 0.0 here"),
        ({"test_set": TEST_SET[:2]}, "another test set"),
    ],
)
def test_answers_to_something_else_are_refused(there, reason):
    mine = asked_by(asking_run("mine"))
    asking_run("one", **there)
    with pytest.raises(RunError, match=reason) as error:
        taken_over("one", mine, TEST_SET, FORMATS, Task())
    assert "base_run=" in error.value.fix


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"base_model": "large"}, "base_model 'large' there"),
        ({"backend": "hosted"}, "backend 'hosted' there, 'stub' here"),
        ({"prompt_format": "qwen3_instruct"}, "prompt_format 'qwen3_instruct' there"),
        ({"examples": "0" * 64}, "other examples"),
    ],
)
def test_answers_of_another_model_are_refused(other, reason):
    run = asking_run("one")
    mine = asked_by(run)
    with run.edit() as manifest:
        results = manifest.stages.evaluate.results
        results.base_asked = results.base_asked.model_copy(update=other)
    with pytest.raises(RunError, match=reason):
        taken_over("one", mine, TEST_SET, FORMATS, Task())


def test_answers_of_a_stale_stage_and_to_other_prompts_are_refused():
    run = asking_run("one")
    mine, path = asked_by(run), run.file(f"evaluate/{OTHERS}")
    path.write_text(path.read_text().replace("What is", "What was"))
    with pytest.raises(RunError, match="do not answer this run's 6 prompts"):
        taken_over("one", mine, TEST_SET, FORMATS, Task())
    finish_stage(run, "train")
    with pytest.raises(RunError, match="no finished 'evaluate' stage"):
        taken_over("one", mine, TEST_SET, FORMATS, Task())


def test_course_run_refuses_a_base_run_before_it_starts(capsys, folder):
    asking_run("one", max_tokens=32)
    before = tree(folder)
    for setting, reason in (("base_run=one", "max_tokens 32 there, 96 here"), ("base_run=two", "'two'")):
        status, _, err = course(capsys, "run", "--dry-run", "-p", setting)
        assert status == 1 and tree(folder) == before
        assert_one_message(err, reason)


# asked in three ways


def in_examples(prompt: str) -> bool:
    return prompt.count("u>") > 1


def base_of(reply: Any, tokenizer: Any = None, **context: int) -> tuple[Run, dict[str, Any]]:
    """A run whose base model answers `reply(prompt)`, and what `base_answers` gives."""
    run = make_run("one", done=("split", "train"))
    write_json(run.file("split/test_set.json"), TEST_SET)
    stage = Stage(run, "evaluate", settings_of("evaluate", {}))
    client = Client(lambda prompt, attempt: reply(prompt))
    renderer = get_renderer("guide", tokenizer or Talkative())
    return run, base_answers(stage, service(**context), client, TEST_SET, renderer)


@pytest.mark.parametrize(
    ("right", "name", "correct"),
    [
        (in_examples, f"{CHAT}, 8 examples", 1),
        (lambda prompt: prompt.startswith("u>What"), CHAT, 1),
        (lambda prompt: prompt.startswith("Instruction"), TRAINING, 1),
        (lambda prompt: False, CHAT, 0),
    ],
)
def test_the_strongest_way_of_asking_counts(right, name, correct):
    def reply(prompt: str) -> str:
        return "Final answer: 4" if right(prompt) and "What is 2 + 2?" in prompt else "Final answer: x"

    run, base = base_of(reply)
    assert (base["prompting"], base["correct"]) == (name, correct)
    assert [row.name for row in base["promptings"]] == [CHAT, f"{CHAT}, 8 examples", TRAINING]
    assert sum(row.correct for row in base["promptings"]) == correct
    rows, others = (read_jsonl(run.file(f"evaluate/{file}")) for file in (SAMPLES, OTHERS))
    assert {row["prompting"] for row in rows} == {name} and len(rows) == 3 and len(others) == 6
    assert [row["output"] for row in rows] == [row["output"] for row in base["samples"]]


def test_what_is_saved_is_of_the_strongest_way_and_has_the_controls():
    run, base = base_of(lambda prompt: "Final answer: 4" if prompt.startswith("u>What") else "no")
    begin_stage(run, "evaluate")
    tuned = score_outputs(TEST_SET, [row["output"] for row in TEST_SET])
    write_jsonl(run.file("evaluate/samples.jsonl"), tuned["samples"])
    save_evaluation(Stage(run, "evaluate", settings_of("evaluate", {})), base, tuned)
    found, entry = EVALUATION.read(run.path), run.stage("evaluate")
    assert entry.summary == "accuracy 33% → 100% on 3 test problems"
    assert (found.base, found.tuned, found.gained, found.lost) == (Score(1, 3), Score(3, 3), 2, 0)
    assert entry.results.base_accuracy == 1 / 3 and entry.results.base_prompting == CHAT
    assert found.controls == entry.results.controls and found.controls.mismatched == Control(0, 3)
    assert found.controls.majority_answer == "0" and found.controls.majority == Control(1, 3)
    assert found.base_promptings == entry.results.base_promptings == base["promptings"]
    assert found.asked[0] == f"{CHAT}: accuracy 1/3 = 33.3%, 95% interval 6.1% to 79.2% (strongest)"


def test_a_way_that_the_model_can_t_be_asked_in_is_named():
    _, base = base_of(lambda prompt: "Final answer: 0", **{"/models/Small-1B": 300})
    left_out = {row.name: row.left_out for row in base["promptings"] if row.correct is None}
    assert list(left_out) == [f"{CHAT}, 8 examples"] and "its context of 300" in left_out.popitem()[1]
    formats, left_out = base_formats(get_renderer("guide", Letters()), [], TEST_SET, 96, None)
    assert list(formats) == [TRAINING] and set(left_out.values()) == {"the model has no chat template"}


def test_a_chat_template_that_is_the_format_of_training_is_asked_once():
    formats, left_out = base_formats(get_renderer("template", Talkative()), TEST_SET, TEST_SET, 96, None)
    assert list(formats) == [f"{CHAT}, 3 examples", TRAINING]
    assert left_out == {CHAT: "it is the format of training"}


def test_the_chat_template_stops_at_the_end_of_a_turn(base_model):
    renderer = get_renderer("guide", base_model)
    formats, _ = base_formats(renderer, TEST_SET, TEST_SET, 96, 8192)
    alone, shown = (formats[name] for name in list(formats)[:2])
    end = renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert alone.get_stop_sequences() == shown.get_stop_sequences() == [end]
    prompts = [renderer.tokenizer.decode(prompt_tokens(TEST_SET[2], form)) for form in (alone, shown)]
    assert all(text.endswith("What is 2 + 2?<|im_end|>\n<|im_start|>assistant\n") for text in prompts)
    assert prompts[1].count("<|im_start|>user") == 4 and "Final answer: 4<|im_end|>" in prompts[1]


def test_the_figure_puts_the_tuned_model_beside_the_format_of_its_training():
    """Also where a way of asking was left out, which then comes last."""
    ways = [
        Prompting(f"{CHAT}, 8 examples", 10, 4),
        Prompting(TRAINING, 10, 1),
        Prompting(CHAT, 10, left_out="…"),
    ]
    axes = plots.prompts_and_training(ways, Score(9, 10)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{CHAT}, 8 examples", TRAINING]
    heights = {text.get_text(): round(text.xy[1], 2) for text in axes.texts}
    assert heights == {"4/10": 0, "1/10": 0.8, "9/10": 1.2}
