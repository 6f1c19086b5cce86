"""A merged model's card, and its way to the Hugging Face hub.

    write_model_card(run)                                    # README.md, from what the run has recorded
    publish_to_hub(run, "you/word-problems")                 # dry: shows what would be sent, and sends nothing
    publish_to_hub(run, "you/word-problems", dry_run=False)

What was public for a minute can't be taken back. So sending must be asked for, and a folder is refused as soon as it holds
one file that a model doesn't need.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from helpers import local_model
from helpers import model_folder
from helpers.train import prompts
from helpers.errors import BackendError, ModelError, RunError
from helpers.files import read_json, write_text
from helpers.data.hub import HUB
from helpers.runs.run import Run
from helpers.evaluate.tasks import Task

MODEL_FILES = re.compile(
    r"README\.md|LICENSE(\.txt|\.md)?|NOTICE(\.txt)?|config\.json|generation_config\.json|model\.safetensors(\.index\.json)?"
    r"|model-\d{5}-of-\d{5}\.safetensors|tokenizer\.(json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.json|merges\.txt|chat_template\.(jinja|json)|(pre)?processor_config\.json"
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
KEY = re.compile(
    rb"(?<![A-Za-z0-9])(?:(tml-)[A-Za-z0-9_-]{12}|(hf_)[A-Za-z0-9]{12})"
)  # shorter ones are names, like tml-renderers


# ---- the card


def write_model_card(run: Run) -> Path:
    """Write `README.md`, a Hugging Face model card, into the run's merged model. One that is there is replaced.

    All in it is read from the run: stages that are not done, and values that were not recorded, are left out.

    Returns:
        The card's path.

    Raises:
        RunError: the merge stage is not done, its folder is gone, or it can't be written.
    """
    manifest = run.manifest
    folder = _merged_folder(run)
    done = {name: entry for name, entry in manifest["stages"].items() if entry.get("status") == "done"}
    if not _made_by_this_run(run, done):
        done = {name: entry for name, entry in done.items() if name not in ("split", "train", "evaluate")}
    base = _base_model(str(manifest.get("base_model", "")))
    evaluation = _read(run, "evaluate/model_evaluation.json") if "evaluate" in done else {}
    parts = [
        f"---\n{_front_matter(base)}\n---",
        f"# {run.name}",
        _summary(base, done, manifest),
        _scores(done, evaluation),
        _usage(done),
        _training_data(run, done),
        _training(done, manifest),
        _parity(run, done),
        _limits(base, done, evaluation),
        "## Versions\n\n" + _table(["package", "version"], list(manifest.get("packages", {}).items())),
    ]
    return write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _merged_folder(run: Run) -> Path:
    run.stage("merge")
    folder = run.file("merge/merged_model")
    if not folder.is_dir():
        raise RunError(
            f"run {run.name} has no folder merge/merged_model", "run notebooks/05_merge.ipynb again"
        )
    return folder


def _read(run: Run, name: str) -> dict[str, Any]:
    """A result file, or nothing if that stage did not write it."""
    return read_json(run.file(name)) if run.file(name).is_file() else {}


def _made_by_this_run(run: Run, done: dict[str, Any]) -> bool:
    """Whether what was merged is the checkpoint that this run trained and scored, and not a path typed by hand."""
    typed = done.get("export", {}).get("parameters", {}).get("checkpoint_path", "")
    if not typed:
        return True
    best = _read(run, "train/best_checkpoint.json")
    is_best = typed in (best.get("state_path"), best.get("sampler_path"))
    return (
        is_best or done["merge"].get("results", {}).get("parity_passed") is True
    )  # compared with the best checkpoint


def _base_model(recorded: str) -> dict[str, str]:
    """`id` on the hub (empty if unknown), `licence` (empty if unknown), `name` for people, `note`."""
    if match := re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(:.+)?", recorded):  # Tinker's names may end in :variant
        return {"id": match[1], "licence": "", "name": recorded, "note": ""}
    readme = Path(recorded) / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    if text == local_model.README:
        note = "The base model came from a 4-bit file, dequantised, which costs a little quality against its original weights."
        return {
            "id": f"HuggingFaceTB/{local_model.LOCAL_MODEL}",
            "licence": "apache-2.0",
            "name": local_model.LOCAL_MODEL,
            "note": note,
        }
    note = "The base model was a local folder; its name on the hub is not known."
    return {"id": "", "licence": _licence(text), "name": Path(recorded).name, "note": note}


def _licence(card: str) -> str:
    """What the head of a model card names as licence; empty if it names none, or can't be read."""
    from huggingface_hub import ModelCard

    try:
        return str(ModelCard(card, ignore_metadata_errors=True).data.license or "")
    except Exception:  # someone's file, with anything in it
        return ""


def _front_matter(base: dict[str, str]) -> str:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        base_model=base["id"] or None,
        license=base["licence"] or "unknown",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["tinker", "tinker-cookbook", "lora", "merged"],
    ).to_yaml()


def _summary(base: dict[str, str], done: dict[str, Any], manifest: dict[str, Any]) -> str:
    name = (
        f"[{base['id']}](https://huggingface.co/{base['id']})"
        if base["id"]
        else f"`{base['name'] or 'a base model without a name'}`"
    )
    kind = manifest.get("backend", {}).get("kind")
    where = {"stub": "the Tinker course's stub backend", "hosted": "hosted Tinker"}.get(
        kind, "a Tinker server"
    )
    export, merge = (done.get(stage, {}).get("results", {}) for stage in ("export", "merge"))
    lines = [
        f"{name}, fine-tuned with LoRA on {where}, and merged: adapter and base model are one"
        + (f", in {merge['dtype']}." if "dtype" in merge else "."),
        base["note"],
    ]
    if "rank" in export:
        lines.append(
            f"The adapter has rank {export['rank']}, alpha {export['alpha']:g} and {export['parameters']:,} numbers."
        )
    if not base["licence"]:
        lines.append(
            "**Its licence is that of the base model, which the run did not record: look it up and put it at the head of this file.**"
        )
    return " ".join(line for line in lines if line)


def _scores(done: dict[str, Any], evaluation: dict[str, Any]) -> str:
    from helpers.evaluate.score import wilson_interval

    rows, text = [], "## Scores\n\nHeld-out test problems, with Wilson's 95% interval."
    if "split" in done:
        task = Task(**done["split"].get("results", {}).get("task", {}))
        text += f" An answer is right if {task.rule}."
    if evaluation:
        total = evaluation["test_size"]
        base_correct = evaluation.get("base_correct", round(evaluation["base_accuracy"] * total))
        rows = [
            ("base model", base_correct, total),
            ("tuned model, Tinker sampler", evaluation["test_correct"], total),
        ]
        rows += [
            (f"… {kind} templates", row["correct"], row["total"])
            for kind, row in evaluation.get("by_template", {}).items()
        ]
        if "temperature" in (settings := done["evaluate"].get("parameters", {})):
            text += f" The sampler's temperature was {settings['temperature']:g}."
    for stage, name in (("merge", "this model, transformers"), ("vllm", "this model, vLLM")):
        result = done.get(stage, {}).get("results", {})
        if "correct" in result:
            rows.append((name, result["correct"], result["total"]))
    if not rows:
        return ""
    cells = []
    for name, correct, total in rows:
        low, high = wilson_interval(correct, total)
        cells.append((name, f"{correct}/{total}", f"{correct / total:.1%}", f"{low:.1%} to {high:.1%}"))
    text += "\n\n" + _table(["", "right", "rate", "95% interval"], cells)
    if "p_value" in evaluation:
        text += (
            f"\n\nOf the problems that only one of the two got right, the tuned model gained {evaluation['gained']} and lost "
            f"{evaluation['lost']} against the base model: McNemar's exact p = {evaluation['p_value']:.2g}."
        )
    return text


def _usage(done: dict[str, Any]) -> str:
    name = done.get("train", {}).get("parameters", {}).get("prompt_format")
    if name is None:
        return ""
    if name != "guide":
        return (
            "## Prompt\n\nTrained and scored on chat prompts as `tinker_cookbook`'s renderer "
            f"`{name}` writes them. Other prompts may do worse."
        )
    prompt = prompts.guide_prompt({"instruction": "…", "input": "…"})
    return (
        "## Prompt\n\nTrained and scored on this prompt; other prompts may do worse. The `Input` line is left out if there is none, and "
        f"an answer ends at {' or '.join(f'`{stop!r}`' for stop in prompts.GUIDE_STOP)}.\n\n```\n{prompt}\n```"
    )


def _training_data(run: Run, done: dict[str, Any]) -> str:
    if "split" not in done:
        return ""
    parameters, results = done["split"].get("parameters", {}), done["split"].get("results", {})
    places = [name.strip() for name in parameters.get("data_files", "").split(",") if name.strip()]
    of_hub = [
        name.startswith(HUB) and not name.startswith(f"{HUB}/") for name in places
    ]  # hub:/… is a folder of this machine
    names = ", ".join(f"`{name if known else Path(name).name}`" for name, known in zip(places, of_hub))
    rows = []
    for part, file in (("train", "train.json"), ("validation", "validation.json"), ("test", "test_set.json")):
        path = run.file(f"split/{file}")
        if path.is_file():
            rows.append((part, len(read_json(path)), hashlib.sha256(path.read_bytes()).hexdigest()))
    of = f", {results['records']:,} records" if "records" in results else ""
    text = f"## Data\n\nFrom {names or 'files that the run did not name'}{of}."
    text += "" if any(of_hub) else " The run names no data set of the hub."
    if "leaks" in results:
        text += f" Groups of repeated or nearly repeated problems that reach across the parts: {results['leaks']}."
    return text + ("\n\n" + _table(["part", "records", "sha256 of its file"], rows) if rows else "")


def _training(done: dict[str, Any], manifest: dict[str, Any]) -> str:
    if "train" not in done:
        return ""
    parameters, results = done["train"].get("parameters", {}), done["train"].get("results", {})
    rows = [
        (name.replace("_", " "), parameters[name])
        for name in (
            "rank",
            "epochs",
            "batch_size",
            "learning_rate",
            "max_length",
            "seed",
            "best_metric",
            "patience",
        )
        if name in parameters
    ]
    rows += [
        (label, results[name])
        for name, label in (
            ("steps", "optimizer steps planned"),
            ("best_step", "step of the checkpoint taken, the best on validation data"),
            ("first_nll", "loss at the first step, nats a token"),
            ("last_nll", "loss at the last step, nats a token"),
        )
        if name in results
    ]
    archive = done.get("export", {}).get("results", {}).get("archive", {})
    rows += [("sha256 of the adapter's archive", archive["sha256"])] if "sha256" in archive else []
    rows += [("run made", manifest["created"][:10])] if "created" in manifest else []
    return "## Training\n\nLoRA; the loss is taken on the answers only.\n\n" + _table(
        ["setting", "value"], rows
    )


def _parity(run: Run, done: dict[str, Any]) -> str:
    rows = []
    for stage, name in (
        ("merge", "this model with the trained one, as Tinker samples it"),
        ("vllm", "this model in vLLM with it in transformers"),
    ):
        parity = _read(run, f"{stage}/parity.json") if stage in done else {}
        if parity:
            rows.append(
                (
                    name,
                    f"{parity['max_abs_logprob_diff']:.1e}",
                    f"{parity['tolerance']:.1e}",
                    parity["prompts"],
                    "yes" if parity["passed"] else "**no**",
                )
            )
    if not rows:
        return ""
    return (
        "## Is it the trained model?\n\nLog-probabilities (nats) of the same answers, compared.\n\n"
        + _table(["compared", "largest difference", "bound", "prompts", "inside all bounds"], rows)
    )


def _limits(base: dict[str, str], done: dict[str, Any], evaluation: dict[str, Any]) -> str:
    lines = []
    if evaluation:
        lines.append(
            f"The scores are of {evaluation['test_size']} problems from the same files as its training data. "
            "They say nothing about other tasks."
        )
        if evaluation.get("p_value", 0) > 0.05:
            lines.append(
                "Its difference from the base model may be chance: the test can't tell the two apart."
            )
        if done.get("split", {}).get("results", {}).get("task", {}).get("name", "math") == "math":
            lines.append("Only final answers were scored: a right answer can stand below wrong steps.")
    else:
        lines.append("The run has no scores that compare this model with its base model.")
    if "train" not in done:
        lines.append("How the merged checkpoint was trained is not recorded.")
    lines += [
        "It makes mistakes in fluent, sure language. Check what it says before you rely on it.",
        "Nobody has examined it for harmful, biased or private content. Expect no better of it than of its base model.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(head: list[str], rows: list[Any]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )


# ---- the hub


def publish_to_hub(
    run_or_folder: Run | str | Path,
    repo_id: str,
    dry_run: bool = True,
    private: bool = True,
    token: str | None = None,
) -> str | None:
    """Send a merged model to the Hugging Face hub, or show what would be sent.

    Args:
        run_or_folder: a run whose merge stage is done, or the folder of a merged model.
        repo_id: `user/name` or `organisation/name`; made if it is not there.
        dry_run: print files, sizes, visibility and card, and send nothing. Needs no network and no token.
        private: only you see it. A public repository of that name is then refused.
        token: a Hugging Face token that may write; None for `HF_TOKEN` or the one that `hf auth login` keeps.

    Returns:
        The address of the repository; None for a dry run.

    Raises:
        ModelError: the folder is no whole safetensors model, or holds a file that a model doesn't need, a pickle or what
            looks like a key, or `repo_id` is none.
        RunError: the run's merge stage is not done.
        BackendError: there is no token, or the hub can't be reached or refuses.
    """
    folder = _merged_folder(run_or_folder) if isinstance(run_or_folder, Run) else Path(run_or_folder)
    _check_repo_id(repo_id)
    sizes = check_publishable(folder)
    print(
        f"{'Would send' if dry_run else 'Sending'} {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB, to "
        f"https://huggingface.co/{repo_id} ({'private: only you see it' if private else 'PUBLIC: anyone can copy it'}):"
    )
    for name, size in sizes.items():
        print(f"  {name:32} {size:>15,} bytes")
    if "README.md" not in sizes:
        print("There is no model card: write_model_card(run) makes one.")
    if not dry_run:
        return _send(folder, repo_id, private, token)
    if "README.md" in sizes:
        print(f"\nThe card, README.md:\n\n{(folder / 'README.md').read_text(encoding='utf-8')}")
    print("Nothing was sent. To send it: dry_run=False")
    return None


def check_publishable(folder: str | Path) -> dict[str, int]:
    """Check that a folder holds a whole safetensors model and nothing else.

    Returns:
        Size in bytes of each file, by name.

    Raises:
        ModelError: names the file and what is wrong with it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder}", "give the run, or the folder that notebook 05_merge made"
        )
    model_folder.check_model_folder(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in PICKLES:
            raise ModelError(
                f"{name} may be a pickle, which can run code when it is loaded",
                "save the weights as safetensors, and delete that file",
            )
        if path.is_symlink() or not path.is_file() or not MODEL_FILES.fullmatch(name):
            raise ModelError(
                f"{name} is not one of the files that a model needs",
                f"move it out of {folder.name}: what is in there is published",
            )
    for path in paths:
        if path.suffix != ".safetensors" and (match := KEY.search(content := path.read_bytes())):
            line = content.count(b"\n", 0, match.start()) + 1
            raise ModelError(
                f"{path.name}, line {line} holds what looks like a secret key ({(match[1] or match[2]).decode()}…)",
                "take it out; if it was ever shared, revoke it",
            )
    return {path.name: path.stat().st_size for path in paths}


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        if not isinstance(repo_id, str) or not re.fullmatch(r"[\x21-\x7e]+/[\x21-\x7e]+", repo_id):
            raise HFValidationError("it needs an owner and a name")
    except HFValidationError as error:
        raise ModelError(
            f"{repo_id!r} can't name a repository: {error}",
            "give user/name, of letters, digits, '-', '_' and '.'",
        ) from error


def _send(folder: Path, repo_id: str, private: bool, token: str | None) -> str:
    from huggingface_hub import get_token
    from tinker_cookbook import weights

    token = token or get_token()
    if not token:
        raise BackendError(
            "sending to the Hugging Face hub needs a token, and there is none",
            "make one that may write at https://huggingface.co/settings/tokens, then `hf auth login` or export HF_TOKEN=…",
        )
    if private and _is_public(repo_id, token):
        raise BackendError(
            f"{repo_id} exists and is public, so that what is sent would be too",
            "choose another name, or pass private=False",
        )
    try:
        url = weights.publish_to_hf_hub(model_path=str(folder), repo_id=repo_id, private=private, token=token)
    except Exception as error:  # the hub's client has errors of its own, and of two network libraries
        reason = f"{type(error).__name__}: {error}".splitlines()[0].replace(token, "(token)")
        raise BackendError(
            f"the Hugging Face hub did not take {repo_id}: {reason}",
            "check the network (and HF_HUB_OFFLINE), that the token may write, and that the owner is you; then again",
        ) from error
    print(f"Sent: {url}")
    return url


def _is_public(repo_id: str, token: str) -> bool:
    """Whether a public repository of this name is there. The hub keeps an old one's visibility, whatever it is asked for."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return not HfApi(token=token).repo_info(repo_id, timeout=10).private
    except RepositoryNotFoundError:
        return False
    except HfHubHTTPError as error:
        raise BackendError(
            f"the Hugging Face hub does not say whether {repo_id} is public: {str(error).splitlines()[0]}",
            "try again later",
        ) from error
    except Exception:  # no connection: sending has none either, and says so
        return False
