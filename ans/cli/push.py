"""Variants to a repository of the Hugging Face hub: `python -m ans push VARIANT OWNER/NAME [--with VARIANT ...]`.

VARIANT lies at the root of the repository, each other variant in a folder of its name, and with `--adapter CHECKPOINT` what was trained
as a PEFT adapter in the folder `adapter`; model cards come from the run. Each is a commit of its own; shards that variants share are
uploaded once. It needs a token that may write (`hf auth login`, or HF_TOKEN). What else is in the repository stays there.
"""

import argparse
import tempfile
from pathlib import Path

from ans.cli.export import measured

HELP = "variants to the Hugging Face hub"
ADAPTER = "adapter"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variant", type=Path, metavar="VARIANT", help="models/variants/<name>")
    parser.add_argument("repository", metavar="OWNER/NAME", help="created if it does not exist")
    parser.add_argument(
        "--with", dest="others", type=Path, nargs="+", default=[], metavar="VARIANT", help="further ones, in folders"
    )
    parser.add_argument("--adapter", type=Path, metavar="CHECKPOINT", help="the .pth that was trained: VARIANT as an adapter too")
    parser.add_argument("--base-model", metavar="NAME", help="the hub's name of the base, for the model cards")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", default="Upload by ANS", help="of the commit (default: %(default)s)")


def run(chosen: argparse.Namespace) -> None:
    names = [path.name for path in chosen.others] + [ADAPTER] * (chosen.adapter is not None)
    if twice := sorted({name for name in names if names.count(name) > 1 or name == chosen.variant.name}):
        raise ValueError(f"--with: {', '.join(twice)} would be written twice")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    for path in (chosen.variant, *chosen.others):
        if not (path / "config.json").is_file():
            raise ValueError(f"{path}: not a model folder: it has no config.json")
    api = HfApi()
    try:
        # before the folders are made, which takes minutes: the hub may refuse the token or the name
        api.create_repo(chosen.repository, private=chosen.private, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".push-", dir=chosen.variant.resolve().parent
        ) as place:  # links need the same disk
            commits = [  # one each: what one has brought, the next need not bring again
                api.upload_folder(repo_id=chosen.repository, folder_path=folder, path_in_repo=name, commit_message=chosen.message)
                for name, folder in _folders(chosen, Path(place)).items()
            ]
    except LocalTokenNotFoundError:
        raise ValueError("no Hugging Face token found: `hf auth login`, or set HF_TOKEN") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"{chosen.repository}: the hub refused it: {error}") from error
    commit = commits[-1]
    print(f"{commit.commit_url}\nFrom Python: huggingface_hub.snapshot_download({chosen.repository!r}, revision={commit.oid!r})")


def _folders(chosen: argparse.Namespace, place: Path) -> dict[str | None, Path]:
    """Make what is uploaded below `place`, and return its folders by their names in the repository; None: its root."""
    from ans.checkpoints.export import export_adapter, export_hub

    folders: dict[str | None, Path] = {}
    for path in (chosen.variant, *chosen.others):
        folders[None if path == chosen.variant else path.name] = place / path.name
        export_hub(path, place / path.name, base_model=chosen.base_model, measured=measured(path))
    if chosen.adapter:
        folders[ADAPTER] = place / ADAPTER
        export_adapter(chosen.variant, chosen.adapter, folders[ADAPTER])
    return folders
