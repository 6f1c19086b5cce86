"""What is in the result files of a run: a model for each, with the fields that somebody reads."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from helpers.errors import DataError
from helpers.evaluate.controls import Controls
from helpers.evaluate.paired import measures_text
from helpers.evaluate.promptings import Prompting
from helpers.evaluate.score import Headline, Score
from helpers.evaluate.tasks import Task

Count = Annotated[int, Field(ge=0)]
Total = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Counts(BaseModel):
    """Right ones of all."""

    correct: Count
    total: Total

    @model_validator(mode="after")
    def _no_more_right_than_asked(self) -> Self:
        if self.correct > self.total:
            raise ValueError(f"{self.correct} right of {self.total}")
        return self

    @property
    def score(self) -> Score:
        return Score(self.correct, self.total)


class Step(BaseModel):
    """An optimizer step."""

    step: int
    train_nll: float  # nats per target token
    tokens_per_second: float


class Checkpoint(Counts):
    """A checkpoint as it was scored on the validation part."""

    step: int
    loss: float  # nats per target token


class Right(TypedDict):
    correct: Count
    total: Count


class Measures(TypedDict, total=False):
    """What a task measures beside the rate of right answers; which of these, depends on the task."""

    macro_f1: Share
    by_label: dict[str, Right]
    confusion: dict[str, dict[str, Count]]
    field_precision: Share
    field_recall: Share
    field_f1: Share
    mean_f1: Share


class BaseAndTuned(BaseModel):
    base: Measures
    tuned: Measures


class Evaluation(BaseModel):
    """Base and tuned model on the test set; the base model asked in the strongest of several ways."""

    base_correct: Count
    test_correct: Count
    test_size: Total
    base_by_category: dict[str, Counts]
    by_category: dict[str, Counts]
    base_by_template: dict[str, Counts]
    by_template: dict[str, Counts]
    base_prompting: str
    base_promptings: list[Prompting]
    task: Task
    measures: BaseAndTuned
    controls: Controls
    gained: Count
    lost: Count
    p_value: Share

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.test_size < max(self.base_correct, self.test_correct):
            raise ValueError(f"more are right than the {self.test_size} of the test set")
        try:
            _ = self.measured, self.asked, self.controls.text(self.task)
        except KeyError as error:
            raise ValueError(f"measures name no {error}") from error
        except DataError as error:
            raise ValueError(error.what) from error
        return self

    @property
    def base(self) -> Score:
        return Score(self.base_correct, self.test_size)

    @property
    def tuned(self) -> Score:
        return Score(self.test_correct, self.test_size)

    @property
    def measured(self) -> list[str]:
        """The measures of the task, in lines of text; none for math."""
        base, tuned = dict(self.measures.base), dict(self.measures.tuned)
        return measures_text(self.task, base, tuned, self.test_size).splitlines()

    @property
    def asked(self) -> list[str]:
        """How the base model did in each way of asking, in lines of text, the strongest marked."""
        return [
            row.text(self.task) + (" (strongest)" if row.name == self.base_prompting else "")
            for row in self.base_promptings
        ]

    @property
    def headlines(self) -> dict[str, Headline]:
        """What to say first of `base` and of `tuned`."""
        scores = {"base": (self.base, self.measures.base), "tuned": (self.tuned, self.measures.tuned)}
        return {
            name: self.task.headline_of(score, measures.get("mean_f1"))
            for name, (score, measures) in scores.items()
        }

    @property
    def base_and_tuned(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The two results in the form that `evaluate_model` gives, as far as figures need it."""

        def result(score: Score, categories: dict[str, Counts]) -> dict[str, Any]:
            return score.fields() | {
                "by_category": {name: counts.score.fields() for name, counts in categories.items()}
            }

        return result(self.base, self.base_by_category), result(self.tuned, self.by_category)


class Sample(BaseModel):
    """A test problem with a model's answer, and whether it is right."""

    index: int
    problem: str
    output: str
    expected: str
    score: bool


class Flip(BaseModel):
    """A test problem that only one model got right: the tuned one (`gained`), or the base model (`lost`)."""

    flip: Literal["gained", "lost"]
    problem: str
    expected: str
    base: str
    tuned: str


class Parity(BaseModel):
    """Log-probabilities of the same tokens by two models, in nats."""

    reference: str
    other: str
    max_abs_logprob_diff: float
    mean_abs_logprob_diff: float
    token_agreement: float | None
    prompts: int
    tokens: int
    tolerance: float
    mean_tolerance: float
    passed: bool


class MergeParity(Parity):
    """The merged model beside the trained one; the adapter too, and the base model, which must fail."""

    peft: Parity | None = None
    negative_control: Parity | None = None


class Rate(BaseModel):
    at_once: int
    tokens_per_second: float


class Speed(BaseModel):
    """Tokens a second of vLLM, and of other engines by name."""

    throughput: list[Rate]
    others: dict[str, float]
    dtype: str
