"""`course check-template`: does a renderer write what a model's own chat template writes?"""

import argparse
from typing import Any

from helpers.course.arguments import add_command


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "check-template",
        run,
        "compare a renderer's tokens with a model's own chat template",
        "Write a few conversations (a system message, several turns, tools, thinking) with a renderer, and "
        "with the chat template that came with the model, and show the first token that differs. The status "
        "is 1 if one does.",
        "course check-template Qwen/Qwen3-8B  # with its own renderer",
        "course check-template my-model/ --renderer template  # what its template writes",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name on the hub, or a folder")
    parser.add_argument(
        "--renderer",
        metavar="NAME",
        help="template, or a tinker_cookbook renderer (default: the model's own)",
    )


def run(options: argparse.Namespace) -> int:
    from helpers.train.audit import audit
    from helpers.train.models import load_tokenizer
    from helpers.train.renderers import get_renderer, renderer_for

    tokenizer = load_tokenizer(options.model)
    name = options.renderer or renderer_for(options.model, tokenizer)
    findings = audit(get_renderer(name, tokenizer))
    print(f"renderer {name}, against the chat template of {options.model}:")
    for finding in findings:
        print(f"  {finding}")
    if "strftime_now" in str(tokenizer.chat_template):
        print("The template writes today's date: what a server writes later will differ from training.")
    return int(any(finding.difference for finding in findings))
