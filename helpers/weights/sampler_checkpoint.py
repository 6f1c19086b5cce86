"""The training checkpoint behind a sampler checkpoint, which has no files of its own."""

from typing import TYPE_CHECKING

from helpers.errors import BackendError

if TYPE_CHECKING:
    import tinker

PROBE = list(range(100, 164))  # tokens that every vocabulary has, to tell one set of weights from another
# Nats a token, on average; one step at a learning rate of 1e-3 moved a small model by 3e-2.
SAME_WEIGHTS = 1e-3


def training_checkpoint_of(rest: "tinker.RestClient", path: str) -> str:
    """The one training checkpoint with the run and the name of a sampler checkpoint.

    Args:
        rest: a client of the service that holds the checkpoint.
        path: `tinker://RUN/sampler_weights/NAME`.

    Returns:
        `tinker://RUN/weights/NAME`.

    Raises:
        BackendError: there is none, or more than one; names the paths that can be downloaded.
    """
    run, _, name = path.removeprefix("tinker://").split("/")
    try:
        listed = rest.list_checkpoints(run).result().checkpoints
    except Exception as error:
        raise BackendError(
            f"{path} is a sampler checkpoint, which has no files, and the server lists no others of its run: "
            f"{error}",
            "check the path, or use a weights/ or external_weights/ path",
        ) from error
    with_files = [checkpoint.tinker_path for checkpoint in listed if checkpoint.checkpoint_type != "sampler"]
    same_name = [other for other in with_files if other == f"tinker://{run}/weights/{name}"]
    if len(same_name) == 1:
        return same_name[0]
    found = "lists more than one training checkpoint" if same_name else "has no training checkpoint"
    raise BackendError(
        f"{path} is a sampler checkpoint, which has no files, and its run {found} of that name",
        _advice(name, with_files),
    )


def _advice(name: str, with_files: list[str]) -> str:
    if with_files:
        return f"if one of these is what you want, give its path: {', '.join(with_files[:4])}"
    return (
        "save files from the training client, training_client.save_weights_external(name).result().path, "
        f"or the training state beside the sampler's weights, training_client.save_state({name!r})"
    )


def check_same_weights(
    service_client: "tinker.ServiceClient", training_client: "tinker.TrainingClient", path: str, source: str
) -> None:
    """Say that `source`, loaded in `training_client`, holds the weights that `path` samples from, or refuse.

    A name proves little: `save_state(name, overwrite=True)` may have come steps later. So both score the same
    tokens, and may differ by no more than `path` does from itself, asked twice (a busy service rounds each
    call otherwise).

    Raises:
        BackendError: the weights differ.
    """
    from tinker import ModelInput

    asked = service_client.create_sampling_client(model_path=path).result()
    loaded = training_client.save_weights_and_get_sampling_client().result()
    futures = [client.compute_logprobs(ModelInput.from_ints(PROBE)) for client in (asked, asked, loaded)]
    first, again, other = [future.result()[1:] for future in futures]
    noise, difference = _mean_difference(first, again), _mean_difference(first, other)
    measured = (
        f"log-probabilities of {len(PROBE)} tokens differ by {difference:.0e} on average, "
        f"and by {noise:.0e} from call to call"
    )
    if not difference <= max(SAME_WEIGHTS, 3 * noise):
        raise BackendError(
            f"{path} has no files, and {source} has its name but other weights: {measured}",
            f"if {source} is what you want, give that path",
        )
    print(f"{path} has no files: took {source}, which has the same run, name and weights ({measured})")


def _mean_difference(left: list[float | None], right: list[float | None]) -> float:
    return sum(abs((a or 0.0) - (b or 0.0)) for a, b in zip(left, right, strict=True)) / len(left)
