"""Base weights from where they lie to a local folder in the Hugging Face layout, every byte of the model pinned.

Four sources (`weights.source`): `embedded`, a folder of this repository with a SHA256SUMS file; `path`, any local
folder; `url`, the base address of a folder of files; `hub`, a Hugging Face repository at one commit. Only data is taken
(safetensors, JSON, tokenizer files), never code or pickles.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from ans.config.fields import ConfigError
from ans.config.schema import MaskEncoderWeights, Weights
from ans.formats.shards import INDEX, link, read_shard_index, refuse_link
from ans.formats.shards import sha256 as _sha256

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""The files that make up a model and its tokenizer."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git keeps in the place of a large one."""

ATTEMPTS = 5
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as lost."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""
_CHUNK = 1 << 20
UNSTATED = 1 << 28
"""Most bytes of a file whose length the server does not state: lists and settings, no weights."""


class FetchError(RuntimeError):
    """The source does not give the files that the preset pins. The message names the file."""


class _Interrupted(Exception):
    """A download ended before its end."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows what a hub's address needs, to other hosts too since every byte is pinned; urllib would also follow to FTP, and from
    https to http, where others see and change what is asked for."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https://",) if req.full_url.startswith("https://") else ("https://", "http://")
        if not newurl.lower().startswith(allowed):
            raise FetchError(f"{req.full_url}: leads to {newurl!r:.200}; only {' and '.join(allowed)} are followed from there")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


# Not OSError: a full disk is not a reason to try again.
_LOST = (_Interrupted, urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def fetch_sam2(sam2: MaskEncoderWeights, out: Path) -> None:
    """Bring SAM2's released `.pt` (an http address or a path) to the file `out`, verified by its sha256.

    Raises `ConfigError` naming the key, `FetchError` naming the file.
    """
    if not sam2.sha256:
        raise ConfigError("weights.sam2.sha256: expected 64 lower-case hexadecimal digits, found none")
    out.unlink(missing_ok=True)  # of an earlier call, perhaps for another file
    if sam2.location.startswith(("http://", "https://")):
        out.parent.mkdir(parents=True, exist_ok=True)
        return _download(sam2.location, out, sam2.sha256)
    if not Path(sam2.location).is_file():
        raise ConfigError(f"weights.sam2.location: no file {sam2.location!r} (seen from {Path.cwd()})")
    found = _sha256(Path(sam2.location))
    if found != sam2.sha256:
        raise FetchError(f"{sam2.location}: expected sha256 {sam2.sha256}, got {found}")
    link(Path(sam2.location).resolve(), out)


def fetch(weights: Weights, out: Path) -> None:
    """Bring the model that `weights` describes to the folder `out`, replacing it.

    Every file with a checksum is verified, those of `hub` also by its own listing; where checksums are given, a safetensors file
    without one is an error. `out` appears complete or not at all. A failed download leaves a hidden folder beside `out`, from
    which the next call goes on: at the byte (`url`), or at the first file that is not whole (`hub`). Raises `ConfigError` naming
    the key of a bad parameter, `FetchError` naming the file that is missing or wrong, and for the hub what to do.
    """
    out = Path(out)
    checksums = _checksums(weights)
    # Keyed by what is fetched, so that leftovers of another source are never taken for this one's.
    key = hashlib.sha256(repr((weights.source, weights.location, weights.revision, sorted(checksums.items()))).encode())
    staging = out.with_name(f".{out.name}.{key.hexdigest()[:12]}")
    staging.mkdir(parents=True, exist_ok=True)
    if weights.source == "url":
        for name, expected in checksums.items():
            _download(f"{weights.location.rstrip('/')}/{quote(name)}", staging / name, expected)
    elif weights.source == "hub":
        _snapshot(weights.location, str(weights.revision), staging)
    else:
        _copy(Path(weights.location), staging)
    try:
        _verify(staging, checksums, weights.location)
    except FetchError:
        shutil.rmtree(staging)  # all there and wrong: nothing to go on from
        raise
    if out.exists():
        shutil.rmtree(out)
    os.replace(staging, out)


def read_sums(path: Path) -> dict[str, str]:
    """Read a SHA256SUMS file as `sha256sum` writes it: name -> 64 hexadecimal digits. Raises `FetchError` naming the line."""
    if not path.is_file():
        raise FetchError(f"{path}: no such file; embedded weights come with their checksums (sha256sum * > SHA256SUMS)")
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\]+)", line)
        if match is None:
            raise FetchError(f"{path}: line {number}: expected `<64 hexadecimal digits>  <file name>`, found {line!r}")
        sums[match[2]] = match[1]
    return sums


def _checksums(weights: Weights) -> dict[str, str]:
    """Check what the settings name; return name -> sha256 (empty: nothing is pinned)."""
    source, location = weights.source, weights.location
    if source == "hub":
        if weights.revision is None:
            raise ConfigError(
                "weights.revision: expected a commit (40 hexadecimal digits), found none; a branch or tag can change under the same name"
            )
    elif source == "url":
        if not weights.sha256:
            raise ConfigError("weights.sha256: is empty; a url source needs it, its keys are the files to fetch")
    else:
        if source == "embedded" and (Path(location).is_absolute() or ".." in Path(location).parts):
            raise ConfigError(f"weights.location: {location!r} is outside the repository; use source `path`")
        if not Path(location).is_dir():
            raise ConfigError(f"weights.location: no folder {location!r} (seen from {Path.cwd()})")
        if source == "embedded" and not weights.sha256:
            return read_sums(Path(location) / "SHA256SUMS")
    return weights.sha256


def _copy(folder: Path, staging: Path) -> None:
    shutil.rmtree(staging)
    staging.mkdir()
    for file in sorted(folder.iterdir()):
        if any(fnmatch(file.name, pattern) for pattern in PATTERNS):
            try:
                refuse_link(file)
            except ValueError as error:
                raise FetchError(str(error)) from error
            if file.is_file():
                link(file, staging / file.name)  # no second copy of the weights, where the file system can


def _snapshot(repository: str, commit: str, staging: Path) -> None:
    """Bring a repository's files at a commit, each as its listing has it. Raises `FetchError`."""
    from httpx2 import HTTPError  # only this source pays for the imports
    from huggingface_hub import HfApi, snapshot_download

    try:
        # local_dir: real files, where the default cache would give links that DVC cannot own. The model lies in no subfolder.
        snapshot_download(repository, revision=commit, local_dir=staging, allow_patterns=list(PATTERNS), ignore_patterns="*/*")
        # What came is compared by size alone until here.
        found = HfApi().verify_repo_checksums(repository, revision=commit, local_dir=staging)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: all that hf_xet raises
        raise FetchError(f"{repository} at {commit}: {_advice(error, repository, commit)}") from error
    for wrong in found.mismatches:
        (staging / wrong["path"]).unlink()
    if found.mismatches:
        raise FetchError(
            f"{repository} at {commit}: {wrong['path']}: expected {wrong['algorithm']} {wrong['expected']} by the hub's listing, "
            f"got {wrong['actual']}; run it again to download the file once more"
        )
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # hub's own bookkeeping, not there for an empty repository


def _advice(error: Exception, repository: str, commit: str) -> str:
    """Return what went wrong with a download from the hub, and what to do about it, in one line."""
    from huggingface_hub import constants, errors

    page, tokens = f"{constants.ENDPOINT}/{repository}", f"{constants.ENDPOINT}/settings/tokens"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why it had to look for a file here
    response = getattr(error, "response", None)
    if isinstance(error, errors.GatedRepoError):
        sent = "no token was sent" if error.response.status_code == 401 else "the token's account is not one of them"
        return (
            f"its files are for accounts that were given access, and {sent}; accept the terms at {page}, then set HF_TOKEN to a "
            f"token of that account which may read gated repositories ({tokens})"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such model, or a private one; check weights.location, or set HF_TOKEN to a token that may read it ({tokens})"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no such commit; take weights.revision from {page}/commits/main"
    if response is not None and response.status_code == 401:
        return f"the hub refuses access (401); set HF_TOKEN to a valid token ({tokens}), or unset it and `hf auth logout`"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or bring the files yourself (weights.source: path)"
    if response is not None:
        reason = f"{response.url.copy_with(query=None)} answers {response.status_code} {response.reason_phrase}"
    elif isinstance(error, json.JSONDecodeError):
        reason = f"{constants.ENDPOINT} gives no listing: does this network want a login, or is HF_ENDPOINT no hub?"
    else:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"{reason}; run again: files that are whole are kept"


def _download(url: str, target: Path, expected: str) -> None:
    """Fetch one file, going on from `<target>.part` where an earlier attempt ended. Raises `FetchError`."""
    if target.exists():
        return  # by an earlier call; _verify reads it anyway
    part = target.with_name(f"{target.name}.part")
    pause, reason = PAUSE, ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            resumed, length = _receive(url, part)
            found = _sha256(part)
            if found == expected:
                os.replace(part, target)
                return
            part.unlink()
            if not resumed:
                raise FetchError(f"{url}: expected sha256 {expected}, got {found} ({length} bytes); not the file that was pinned")
            reason = "what was resumed did not match its sha256"  # the part was of an older file: one more try, from nothing
        except urllib.error.HTTPError as error:
            if error.code == 416 and part.exists():  # nothing lies after the part: it is the whole file, or none of this one
                if _sha256(part) == expected:
                    os.replace(part, target)
                    return
                part.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                raise FetchError(f"{url}: the server answers {error.code} {error.reason}") from error
            reason = f"the server answers {error.code} {error.reason}"
        except _LOST as error:
            reason = str(error) or type(error).__name__
        if attempt < ATTEMPTS:
            time.sleep(pause)
            pause *= 2
    kept = part.stat().st_size if part.exists() else 0
    raise FetchError(f"{url}: gave up after {ATTEMPTS} attempts: {reason}; {kept} bytes are kept for the next run")


def _receive(url: str, part: Path) -> tuple[bool, int]:
    """Append what is missing to `part`. Returns whether earlier bytes were kept, and the length. Raises one of `_LOST`."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Interrupted(f"asked for bytes from {start}, got {response.headers.get('Content-Range')!r}")
        if not resumed:
            start = 0  # a server without ranges sends the whole file
        announced = response.headers.get("Content-Length")
        total = start + int(announced) if announced is not None and announced.isdigit() else None
        room = shutil.disk_usage(part.parent).free + start
        if total is not None and total > room:
            raise FetchError(f"{url}: has {total} bytes, {part.parent} has room for {room}")
        bar = tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if resumed else "wb") as file, bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if total is None and file.tell() > UNSTATED:
                    file.truncate(0)
                    raise FetchError(
                        f"{url}: no length is stated, and more than {UNSTATED} bytes come; not the file that was pinned"
                    )
            length = file.tell()
    if total is not None and length != total:
        raise _Interrupted(f"ended at {length} of {total} bytes")
    return resumed, length


def _verify(folder: Path, checksums: dict[str, str], origin: str) -> None:
    """Check every pinned file, that no safetensors file escapes the pins, and that the model is whole. Raises `FetchError`."""
    names = {file.name for file in folder.iterdir()}
    for name, expected in checksums.items():
        if name not in names:
            raise FetchError(f"{origin}: {name} has a checksum but is missing (or has none of the names {', '.join(PATTERNS)})")
        found = _sha256(folder / name)
        if found != expected:
            raise FetchError(f"{origin}: {name}: expected sha256 {expected}, got {found}")
    shards = {name for name in names if name.endswith(".safetensors")}
    if checksums and shards - checksums.keys():
        raise FetchError(f"{origin}: {min(shards - checksums.keys())} has no checksum, although the other files have one")
    for name in sorted(shards):
        with open(folder / name, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise FetchError(
                    f"{origin}: {name} is a Git LFS pointer, not the file; run `git lfs pull` in the repository that it comes from"
                )
    wanted = {"config.json"}
    if (folder / INDEX).exists():
        try:
            wanted |= set(read_shard_index(folder / INDEX)["weight_map"].values())
        except ValueError as error:
            raise FetchError(f"{origin}: {error}") from error
    if wanted - names:
        raise FetchError(f"{origin}: {min(wanted - names)} is missing")
    if not shards:
        raise FetchError(f"{origin}: there is no *.safetensors file")
