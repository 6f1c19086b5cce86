"""What is there: base models, training runs, checkpoints, what they take on disk, and copies of them."""

import json
import uuid

from tinker import types

from helpers.stub_tinker.checkpoint_store import ADAPTER_FIELDS
from helpers.stub_tinker.errors import BadRequest, StoreError
from helpers.stub_tinker.service import Service


def capabilities(service: Service) -> dict:
    """The base models that the server offers."""
    models = []
    for name, base in service.engine.bases.items():
        config = json.loads((base.folder / "config.json").read_text())
        models.append(
            {
                "model_name": name,
                "trainable": True,
                "sampleable": True,
                "max_context_length": config["max_position_embeddings"],
            }
        )
    return {"supported_models": models}


def training_run(service: Service, owner: str, run: str, accessible: bool = False) -> dict:
    """A training run in the form of `tinker.types.TrainingRun`; see `Store.run_info` for `accessible`."""
    info = service.store.run_info(run, owner, accessible)
    checkpoints = service.store.list_checkpoints(owner, run)

    def newest(kind: str) -> dict | None:
        return next((c for c in checkpoints if c["checkpoint_type"] == kind), None)

    return {
        "training_run_id": run,
        "base_model": info["base_model"],
        "model_owner": info["owner"],
        "is_lora": True,
        "lora_rank": info["lora_rank"],
        "last_request_time": max([info["created"], *(c["time"] for c in checkpoints)]),
        "last_checkpoint": newest("training"),
        "last_sampler_checkpoint": newest("sampler"),
        "user_metadata": info.get("user_metadata") if info["owner"] == owner else None,
    }


def runs(service: Service, owner: str, accessible: bool = False, project: str | None = None) -> list[str]:
    """Ids of runs, newest first; with a project, those that carry its label."""
    infos = service.store.list_runs(owner, accessible)
    return [
        info["training_run_id"] for info in infos if project is None or _project(service, info) == project
    ]


def _project(service: Service, info: dict) -> str | None:
    """The project that a run or its session was labelled with."""
    if info.get("project_id") or not info.get("session"):
        return info.get("project_id")
    try:
        return service.session_store.read(info["session"], info["owner"]).get("project_id")
    except StoreError:  # a run from before sessions were stored
        return None


def weights_info(service: Service, owner: str, path: str) -> dict:
    info = service.store.find(path, owner)[2]
    return {"is_lora": True, **{key: info[key] for key in ADAPTER_FIELDS}}


def copy_weights(
    service: Service, owner: str, request: types.CopyWeightsRequest, retry_key: str | None
) -> dict:
    """Copy a checkpoint into a new run. A repeated request carries the same key, and gets the first copy."""
    session, project = request.session_id, request.destination_project_id
    if (session is None) == (project is None) or (session is None) != (request.model_seq_id is None):
        raise BadRequest("a copy needs destination_project_id, or session_id with model_seq_id")
    if session is not None:
        service.touch(session, owner)
        run = f"{session}:train:{request.model_seq_id}"
    else:
        made = uuid.uuid5(uuid.NAMESPACE_OID, f"{owner} {retry_key}") if retry_key else uuid.uuid4()
        run = f"{made}:train:0"
    path = service.store.copy(request.source_path, owner, run, session, project, request.ttl_seconds)
    return {"tinker_path": path}


def storage_usage(service: Service, owner: str, project: str | None) -> dict:
    """What the caller's checkpoints take on disk, by project. Nothing here costs money."""
    sizes: dict[str | None, list[int]] = {}
    for info in service.store.list_runs(owner):
        checkpoints = service.store.list_checkpoints(owner, info["training_run_id"])
        sizes.setdefault(_project(service, info), []).extend(c["size_bytes"] for c in checkpoints)
    rows = [
        {
            "project_id": key,
            "org_user_urn": owner,
            "checkpoint_count": len(value),
            "size_bytes": sum(value),
            "size_gigabytes": sum(value) / 1e9,
        }
        for key, value in sizes.items()
        if value and (project is None or key == project)
    ]
    return {"data": rows}
