"""How JupyterLab reads notebooks when `course lab` starts it."""

from typing import Any

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager


class CourseFiles(AsyncLargeFileManager):
    """Gives each notebook the description of Python that its kernel will write into it. JupyterLab would take
    any difference for a change of the reader's, mark the notebook as modified and save it.
    """

    async def get(self, path: str, *more: Any, **options: Any) -> dict[str, Any]:
        model = await super().get(path, *more, **options)
        if model["type"] == "notebook" and model["content"]:
            model["content"]["metadata"]["language_info"] = dict(IPythonKernel.language_info)
        return model
