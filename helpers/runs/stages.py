"""The stages of a run: their notebooks, and which stages each one builds on; and the lessons after them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageKind:
    """A stage's notebook (without `.ipynb`), and the stages whose files it reads."""

    notebook: str
    needs: tuple[str, ...] = ()


STAGES = {
    "split": StageKind("01_split"),
    "train": StageKind("02_train", ("split",)),
    "evaluate": StageKind("03_evaluate", ("split", "train")),
    "export": StageKind("04_export", ("train",)),
    "merge": StageKind("05_merge", ("split", "export")),
    "vllm": StageKind("06_vllm_inference", ("split", "merge")),
}

# The notebooks of Parts 2 and 3. They are no stages: none reads what another makes.
LESSONS = {
    2: ("07_tokens_and_templates", "08_lora_by_hand", "09_break_it"),
    3: ("10_reinforcement_learning", "11_preferences", "12_your_own_data", "13_distillation"),
}


def lessons_by_number() -> dict[str, str]:
    """`{"07": "07_tokens_and_templates", …}`."""
    return {lesson.partition("_")[0]: lesson for part in LESSONS.values() for lesson in part}


def stages_until(last: str) -> list[str]:
    """The stages up to `last`, in order."""
    names = list(STAGES)
    return names[: names.index(last) + 1]


def built_on(name: str) -> set[str]:
    """The stages whose files come from those of `name`, directly or not."""
    found = {name}
    for later, kind in STAGES.items():
        if found & set(kind.needs):
            found.add(later)
    return found - {name}
