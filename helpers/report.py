"""report.html: a finished run on one page that needs no network and no other file."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from helpers.files import read_json, read_jsonl, write_text
from helpers.runs import STAGES, Run

SAMPLES = 12

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8886; }
td { white-space: pre-line; } img { max-width: 100%; background: white; } code { overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; } h2 { break-after: avoid; } tr, img { break-inside: avoid; } }
"""


def base_and_tuned(evaluation: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two results in model_evaluation.json, each in the form that `evaluate_model` gives."""
    base = {"correct": evaluation["base_correct"], "total": evaluation["test_size"], "accuracy": evaluation["base_accuracy"],
            "ci95": evaluation["base_accuracy_ci95"], "by_category": evaluation["base_by_category"]}
    tuned = {"correct": evaluation["test_correct"], "total": evaluation["test_size"], "accuracy": evaluation["test_accuracy"],
             "ci95": evaluation["test_accuracy_ci95"], "by_category": evaluation["by_category"]}
    return base, tuned


def write_report(run: Run) -> Path:
    """Write `report.html` into the run folder.

    Raises:
        RunError: a stage of the run is not done, or the folder can't be written.
    """
    from helpers.plots import accuracy_by_category, training_curves
    from helpers.tasks import measures_text, task_of

    stages, task = {name: run.stage(name) for name in STAGES}, task_of(run)
    evaluation = read_json(run.file("evaluate/model_evaluation.json"))
    base, tuned = base_and_tuned(evaluation)
    curves = training_curves(read_jsonl(run.file("train/metrics.jsonl")), read_jsonl(run.file("train/checkpoints.jsonl")),
                             read_json(run.file("train/best_checkpoint.json")))
    manifest = run.manifest
    body = [
        f"<h1>Run {escape(run.name)}</h1>",
        f"<p>{escape(stages['evaluate']['summary'])}, with {escape(str(manifest['base_model']).rsplit('/', 1)[-1])} on "
        f"{escape(manifest['backend']['kind'])}, made {escape(manifest['created'])}.</p>",
        "<h2>Stages</h2>",
        _table(["stage", "seconds", "key result", "files"],
               [[name, f"{s['seconds']:.0f}", s["summary"], "\n".join(s["artefacts"])] for name, s in stages.items()]),
        "<h2>Training</h2>",
        _image(curves, "Training and validation loss, and validation accuracy, over optimizer steps"),
        "<h2>Test set</h2>",
        _table(["", "right", "rate", "95% interval"], [[name, f"{r['correct']}/{r['total']}", f"{r['accuracy']:.1%}", _interval(r)]
                                                       for name, r in _scores(run, stages, base, tuned)]),
        f"<p>An answer is right if {escape(task.rule)}.</p>",
        f"<pre>{escape(measures_text(task, **evaluation.get('measures', {'base': {}, 'tuned': {}})))}</pre>" if task.name != "math" else "",
        f"<p>Gained {evaluation['gained']}, lost {evaluation['lost']} against the base model; McNemar's exact p = {evaluation['p_value']:.2g}.</p>",
        _image(accuracy_by_category(base, tuned), "Base and tuned model by category, with 95% intervals"),
        "<h2>Is it the trained model?</h2>",
        _table(["compared", "largest logprob difference", "bound", "prompts", "passed"], [
            [name, f"{p['max_abs_logprob_diff']:.1e}", f"{p['tolerance']:.1e}", str(p["prompts"]), str(p["passed"])]
            for name, p in (("merged with the trained model", read_json(run.file("merge/parity.json"))),
                            ("vLLM with the merged model", read_json(run.file("vllm/parity.json"))))]),
        f"<h2>Samples to read</h2><p>The first {SAMPLES} test problems.</p>",
        _table(["problem", "expected", "base model", "tuned model", ""], _samples(run)),
        "<h2>Settings</h2>",
        _table(["stage", "parameters"], [[name, "\n".join(f"{k} = {v!r}" for k, v in s["parameters"].items())] for name, s in stages.items()]),
        "<h2>Versions</h2>",
        _table(["package", "version"], [[name, version] for name, version in manifest["packages"].items()]),
    ]
    page = ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Run {escape(run.name)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n")
    return write_text(run.file("report.html"), page)


def _scores(run: Run, stages: dict[str, Any], base: dict, tuned: dict) -> list[tuple[str, dict]]:
    from helpers.evaluation import wilson_interval

    rows = [("base model", base), ("tuned model, sampler", tuned)]
    for stage, name in (("merge", "merged model, transformers"), ("vllm", "merged model, vLLM")):
        result = stages[stage]["results"]
        rows.append((name, result | {"ci95": wilson_interval(result["correct"], result["total"])}))
    return rows


def _interval(result: dict) -> str:
    return f"{result['ci95'][0]:.1%} to {result['ci95'][1]:.1%}"


def _samples(run: Run) -> list[list[str]]:
    before, after = (read_jsonl(run.file(f"evaluate/{name}.jsonl"))[:SAMPLES] for name in ("base_samples", "samples"))
    return [[a["problem"], a["expected"], b["output"][:300], a["output"][:300], "right" if a["score"] else "wrong"] for b, a in zip(before, after)]


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><thead><tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + f"</tr></thead><tbody>{cells}</tbody></table>"


def _image(figure: Any, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
