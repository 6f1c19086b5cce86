"""A merged model's way to the Hugging Face hub.

    publish_to_hub(run, "you/word-problems")                 # dry: shows what would be sent, and sends
    nothing publish_to_hub(run, "you/word-problems", dry_run=False)

What was public for a minute can't be taken back. So sending must be asked for, and a folder is refused as
soon as it holds one file that a model doesn't need.
"""

import re
from pathlib import Path

from helpers import model_folder
from helpers.errors import BackendError, ModelError
from helpers.runs.card import merged_folder, write_model_card
from helpers.runs.run import Run
from helpers.text import printable

MODEL_FILES = re.compile(
    r"README\.md|LICENSE(\.txt|\.md)?|NOTICE(\.txt)?|config\.json|generation_config\.json"
    r"|model\.safetensors(\.index\.json)?|model-\d{5}-of-\d{5}\.safetensors"
    r"|tokenizer\.(json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.json|merges\.txt|chat_template\.(jinja|json)|(pre)?processor_config\.json"
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# Shorter ones are names, like tml-renderers.
KEY = re.compile(rb"(?<![A-Za-z0-9])(?:(tml-)[A-Za-z0-9_-]{12}|(hf_)[A-Za-z0-9]{12})")


def publish_to_hub(
    run_or_folder: Run | str | Path,
    repo_id: str,
    dry_run: bool = True,
    private: bool = True,
    token: str | None = None,
) -> str | None:
    """Send a merged model to the Hugging Face hub, or show what would be sent.

    Args:
        run_or_folder: a run whose merge stage is done, or the folder of a merged model. A run's card is
            written if there is none, or if a stage was done since; so what you changed in it by hand stays.
        repo_id: `user/name` or `organisation/name`; made if it is not there.
        dry_run: print files, sizes, visibility and card, and send nothing. Needs no network and no token.
        private: only you see it. A public repository of that name is then refused.
        token: a Hugging Face token that may write; None for `HF_TOKEN` or the one that `hf auth login` keeps.

    Returns:
        The address of the repository; None for a dry run.

    Raises:
        ModelError: the folder is no whole safetensors model, or holds a file that a model doesn't need, a
            pickle or what looks like a key, or `repo_id` is none.
        RunError: the run's merge stage is not done.
        BackendError: there is no token, or the hub can't be reached or refuses.
    """
    _check_repo_id(repo_id)
    if isinstance(run_or_folder, Run):
        folder = merged_folder(run_or_folder)
        if _is_stale(folder / "README.md", run_or_folder):
            write_model_card(run_or_folder)
    else:
        folder = Path(run_or_folder)
    sizes = check_publishable(folder)
    visible = "private: only you see it" if private else "PUBLIC: anyone can copy it"
    print(
        f"{'Would send' if dry_run else 'Sending'} {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB,",
        end=" ",
    )
    print(f"to https://huggingface.co/{repo_id} ({visible}):")
    for name, size in sizes.items():
        print(f"  {name:32} {size:>15,} bytes")
    if "README.md" not in sizes:
        print("There is no model card: write_model_card(run) makes one.")
    if not dry_run:
        return _send(folder, list(sizes), repo_id, private, token)
    if "README.md" in sizes:
        card = (folder / "README.md").read_text(encoding="utf-8")
        print(printable(f"\nThe card, README.md:\n\n{card}"))
    print("Nothing was sent. To send it: dry_run=False")
    return None


def _is_stale(card: Path, run: Run) -> bool:
    """Whether a card is missing, or older than a finished stage."""
    ends = [entry.finished.timestamp() for _, entry in run.manifest.stages.items() if entry.finished]
    return not card.is_file() or card.stat().st_mtime < max(ends)


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
        _check_file(path, folder)
    for path in paths:
        _check_no_key(path)
    return {path.name: path.stat().st_size for path in paths}


def _check_file(path: Path, folder: Path) -> None:
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


def _check_no_key(path: Path) -> None:
    if path.suffix == ".safetensors":
        return
    content = path.read_bytes()
    if match := KEY.search(content):
        line = content.count(b"\n", 0, match.start()) + 1
        begins = (match[1] or match[2]).decode()
        raise ModelError(
            f"{path.name}, line {line} holds what looks like a secret key ({begins}…)",
            "take it out; if it was ever shared, revoke it",
        )


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


def _send(folder: Path, names: list[str], repo_id: str, private: bool, token: str | None) -> str:
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise BackendError(
            "sending to the Hugging Face hub needs a token, and there is none",
            "make one that may write at https://huggingface.co/settings/tokens, "
            "then `hf auth login` or export HF_TOKEN=…",
        )
    api = HfApi(token=token)
    try:
        url = str(api.create_repo(repo_id, private=private, exist_ok=True))
        # The hub keeps the visibility of a repository that was there before, whatever it is asked for.
        public = not api.repo_info(repo_id, timeout=10).private
        if not (private and public):
            api.upload_folder(folder_path=folder, repo_id=repo_id, allow_patterns=names)
    except Exception as error:  # the hub's client has errors of its own, and of two network libraries
        reason = f"{type(error).__name__}: {error}".splitlines()[0].replace(token, "(token)")
        raise BackendError(
            f"the Hugging Face hub did not take {repo_id}: {reason}",
            "check the network (and HF_HUB_OFFLINE), that the token may write, and that the owner is you",
        ) from error
    if private and public:
        raise BackendError(
            f"{repo_id} exists and is public, so that what is sent would be too",
            "choose another name, or pass private=False",
        )
    print(f"Sent: {url}")
    return url
