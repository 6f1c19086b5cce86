"""Graders: is an answer right, and why.

    check_answer("12 ", "12")                          # the same text, up to case, spaces, end punctuation
    check_final_answer("... the answer is $1,200.", "1200")     # the same value, found in free text
    check_reasoning_steps("5 + 7 = 12\\n12 * 3 = 36", reference)    # all equations right, all steps there
    check_completeness("... Therefore, the sum is (3 +")        # cut off
    check_label("Label: Billing.", "billing", ["billing", "other"])      # names that label and no other
    check_fields('{"city": "Rome", "nights": 3}', "nights: 3\\ncity: Rome")      # all fields, the same values
    check_calls('{"name": "f", "arguments": {"a": 1}}', reference)     # the same tool calls

Each returns a `Verdict`: true or false in an `if`, and it says why. No text makes them raise or run away: one
of 100 kB takes a second and 200 MB at most. Texts and numbers are bounded, and what is not plain arithmetic
goes to math-verify in a process with limits.
"""

from helpers.evaluate.grading.calls import check_calls, read_calls
from helpers.evaluate.grading.fields import check_fields, read_fields
from helpers.evaluate.grading.free_text import text_f1
from helpers.evaluate.grading.labels import check_label, label_in
from helpers.evaluate.grading.math.answers import check_answer, check_final_answer
from helpers.evaluate.grading.math.completeness import check_completeness
from helpers.evaluate.grading.math.final_answer import final_answer
from helpers.evaluate.grading.math.reasoning import check_reasoning_steps
from helpers.evaluate.grading.math.wording import normalise
from helpers.evaluate.grading.verdict import Verdict

__all__ = [
    "Verdict",
    "check_answer",
    "check_calls",
    "check_completeness",
    "check_fields",
    "check_final_answer",
    "check_label",
    "check_reasoning_steps",
    "final_answer",
    "label_in",
    "normalise",
    "read_calls",
    "read_fields",
    "text_f1",
]
