"""Exported formats as a commit at a model hub, with a card and a tag.

Room: trainer/export. The only module that writes to a hub (huggingface_hub; the token is HF_TOKEN).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ratchet_api.export import HubRevision, HubUpload
from ratchet_trainer.errors import TryAgain, UploadRefused

_OURS = (".safetensors", ".safetensors.index.json", ".gguf")


def upload(to: HubUpload, files: Mapping[str, Path | bytes], version: str) -> HubRevision:
    """One commit with the files by their paths, and the version's name as a tag on it.

    Weights of an earlier version go with the same commit; what people put beside them stays. The same files again
    make no new commit. Raises UploadRefused or TryAgain.
    """
    import httpx2  # huggingface_hub's own HTTP client, whose errors it lets through
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if to.endpoint is not None:
        # A hub of one's own has no Xet store; Git LFS is what they all speak.
        constants.HF_HUB_DISABLE_XET = True
    api = HfApi(endpoint=to.endpoint, token=os.environ.get("HF_TOKEN"))
    try:
        return _commit(api, to, files, version)
    except OfflineModeIsEnabled:
        raise UploadRefused("export.hub: HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        first = (error.server_message or str(error).strip() or "no reason given").splitlines()[0]
        if status in (400, 401, 403, 404, 409, 413, 422):
            raise UploadRefused(
                f"export.hub: the hub refuses {to.repository} ({status}: {first}): correct export.hub.repository, or "
                "the key HF_TOKEN of the Secret in export.hub.tokenSecret and its rights"
            ) from None
        raise TryAgain(f"the hub failed ({status}: {first}): it is tried again") from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        # huggingface_hub wraps what goes wrong while a large file is sent in a RuntimeError.
        raise TryAgain(
            f"the hub does not answer ({type(error).__name__}): check the way to it, and export.hub.endpoint"
        ) from error


def _commit(api: Any, to: HubUpload, files: Mapping[str, Path | bytes], version: str) -> HubRevision:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(to.repository, private=to.private, exist_ok=True)
    there = api.model_info(to.repository)
    if to.private and not there.private:
        raise UploadRefused(
            f"export.hub: {to.repository} exists and is public: make it private at the hub, or write private: false"
        )
    adds = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
    old = [one.rfilename for one in there.siblings or [] if _is_ours(one.rfilename) and one.rfilename not in files]
    operations = [*adds, *(CommitOperationDelete(path) for path in old)]
    revision = api.create_commit(to.repository, operations, commit_message=f"{version}, by Ratchet").oid
    tags = {one.name: one.target_commit for one in api.list_repo_refs(to.repository).tags}
    if tags.get(version) != revision:
        if version in tags:
            api.delete_tag(to.repository, tag=version)
        api.create_tag(to.repository, tag=version, revision=revision)
    return HubRevision(repository=to.repository, revision=revision, tag=version)


def _is_ours(path: str) -> bool:
    return path.endswith(_OURS) or path.startswith("mlx/")
