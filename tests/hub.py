"""A Hugging Face hub on this machine, for tests: what `huggingface_hub` asks to download a model, and what goes wrong there.

`FileServer` is a plain server of files: any address that files are fetched from, and the hub's CDN. `Hub` answers as
huggingface.co does to a download at a commit:

    GET  /api/models/<owner>/<name>/tree/<commit>   the files, in pages that a Link header joins
    HEAD /<owner>/<name>/resolve/<commit>/<file>    commit, ETag and size, and a redirect: a large file's (LFS) leads to the CDN,
                                                    the others' to /api/resolve-cache/ on the hub itself
    GET  of what the redirect named, by ranges too
    GET  /api/models/<owner>/<name>/xet-read-token/<commit>      where the listing gives a Xet hash, as it does for most models:
                                                    a large file then comes in chunks, as another server (`Cas`) lists them

Errors are told by status, X-Error-Code and X-Error-Message. A client finds the hub by HF_ENDPOINT, which `huggingface_hub` reads
when it is imported; so tests run it in a process of its own, see `Hub.environment`.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

ALWAYS = 10**9
PAGE = 2
"""Files in a page of the listing. The hub's are longer, but a small model must take several, too."""
SIGNATURE = "X-Signature=3f"
"""What the CDN wants to see: the query of the address in the hub's redirect."""
CHUNK = 1 << 16
"""Bytes in a chunk of a file in Xet."""


@dataclass(frozen=True)
class Request:
    """What a client asked for; `headers` has lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for a path. `kind` is one of:

    status       it is answered with the status `number` and `headers`
    portal       with a page that wants a login, as some networks have it
    cut, reset   the connection is closed, or reset, after `number` bytes of the body
    stall        nothing comes after `number` bytes
    short        `number` bytes fewer than the file has are stated and sent
    long         `number` bytes more are stated than come
    excess       more comes than is stated, without an end
    endless      no length is stated, and the file comes again and again
    vast         a length of `number` bytes is stated
    other        a file of the same length whose last byte is another
    pointer      git's pointer to a large file
    no ranges    always the whole file
    wrong range  one that begins `number` bytes later than what was asked for
    """

    kind: str
    number: int = 0
    times: int = ALWAYS
    headers: Mapping[str, str] = field(default_factory=dict)


class FileServer:
    """Serves `files` (path -> content) while it is entered. `requests`: those that came so far."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._faults: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail(self, path: str, kind: str, number: int = 0, times: int = ALWAYS, headers: Mapping[str, str] | None = None) -> None:
        """Let requests for `path` go wrong, see `Fault`; after those of which an earlier call says so."""
        self._faults.setdefault(path, []).append(Fault(kind, number, times, headers or {}))

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        self._faults.clear()

    def asked(self, path: str, method: str = "GET") -> list[Request]:
        """The requests for a path, whatever their query."""
        return [request for request in self.requests if request.method == method and urlsplit(request.path).path == path]

    def ranges(self, path: str) -> list[str | None]:
        """The ranges of a file that were asked for, None for the whole."""
        return [request.headers.get("range") for request in self.asked(path)]

    def answer(self, handler: "_Handler", path: str, query: str, fault: Fault | None) -> None:
        """Answer one request."""
        if path not in self.files:
            return handler.send(404)
        handler.send_file(self.files[path], fault)

    def take_fault(self, path: str) -> Fault | None:
        """The fault of one request for `path`."""
        with self._lock:
            faults = self._faults.get(path)
            if not faults:
                return None
            faults[0].times -= 1
            return faults[0] if faults[0].times else faults.pop(0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: FileServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        owner, parts = self.server.owner, urlsplit(self.path)
        owner.requests.append(Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        path = unquote(parts.path)
        fault = owner.take_fault(path)
        try:
            if fault is not None and fault.kind == "status":
                self.send(fault.number, headers=fault.headers)
            elif fault is not None and fault.kind == "portal":
                self.send(200, b"<html>Log in to this network</html>", {"Content-Type": "text/html"})
            else:
                owner.answer(self, path, parts.query, fault)
        except (BrokenPipeError, ConnectionResetError):  # the client has gone
            self.close_connection = True

    do_HEAD = do_GET

    def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self._send_head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, data: bytes, fault: Fault | None, headers: Mapping[str, str] | None = None) -> None:
        """The file, or the range of it that was asked for, as far as `fault` lets it through."""
        kind, number = (fault.kind, fault.number) if fault is not None else ("", 0)
        if kind == "other":
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif kind == "pointer":
            data = pointer(data)
        elif kind == "short":
            data = data[:-number]
        status, start, stop, values = 200, 0, len(data), {"Accept-Ranges": "bytes", **(headers or {})}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and kind != "no ranges":
            status, start = 206, int(wanted[1])
            if start >= len(data):
                return self.send(416, headers={"Content-Range": f"bytes */{len(data)}"})
            stop = min(int(wanted[2]) + 1, stop) if wanted[2] else stop
            values["Content-Range"] = f"bytes {start + number if kind == 'wrong range' else start}-{stop - 1}/{len(data)}"
        body = data[start:stop]
        length = str(number if kind == "vast" else len(body) + (number if kind == "long" else 0))
        self._send_head(status, values if kind == "endless" else {**values, "Content-Length": length})
        if self.command != "HEAD":
            self._send_body(body, kind, number)

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, body: bytes, kind: str, number: int) -> None:
        self.close_connection = kind in ("cut", "reset", "stall", "long", "excess", "endless", "vast")
        self.wfile.write(body[:number] if kind in ("cut", "reset", "stall") else body)
        if kind == "stall":
            self.server.owner.closing.wait()
        while kind in ("excess", "endless") and not self.server.owner.closing.is_set():
            self.wfile.write(body)
        if kind == "reset":  # closed at once, whatever the client has not read yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


# --------------------------------------------------------------------------------------------------------------------- the hub


@dataclass(frozen=True)
class Repository:
    """A model at one commit. `gated`: all may see its listing, but only `readers` (tokens) its files; `private`: nobody else
    sees anything. `xet`: its large files are kept in Xet.
    """

    files: Mapping[str, bytes]
    commit: str
    gated: bool = False
    private: bool = False
    readers: frozenset[str] = frozenset()
    xet: bool = False


class Hub(FileServer):
    """`repositories`: owner/name -> `Repository`; `tokens`: those that it knows; `moved`: a model's old name -> its new one."""

    def __init__(self, repositories: Mapping[str, Repository], tokens: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.repositories, self.tokens = dict(repositories), tokens
        self.moved: dict[str, str] = {}
        self.cdn = Cdn()
        self.cas = Cas(self.cdn)
        for repository in repositories.values():
            self.cdn.files |= {cdn_path(data): data for name, data in repository.files.items() if is_large(name)}

    def __enter__(self) -> Self:
        self.cdn.__enter__()
        self.cas.__enter__()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self.cas.__exit__(kind, error, trace)
        self.cdn.__exit__(kind, error, trace)

    def heal(self) -> None:
        super().heal()
        self.cas.heal()
        self.cdn.heal()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str | None]:
        """The variables that lead `huggingface_hub` here, with a home of its own; None: must not be set."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_OFFLINE": None}

    def answer(self, handler: _Handler, path: str, query: str, fault: Fault | None) -> None:
        routes = {
            r"/api/models/([^/]+/[^/]+)/tree/([^/]+)": self._tree,
            r"/api/models/([^/]+/[^/]+)/xet-read-token/([^/]+)": self._xet_token,
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._resolve,
            r"/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)": self._small_file,
        }
        for pattern, route in routes.items():
            if match := re.fullmatch(pattern, path):
                name, revision, *file = match.groups()
                if name in self.moved:
                    place = quote(path.replace(name, self.moved[name], 1))
                    return handler.send(307, headers={"Location": f"{place}?{query}" if query else place})
                if refusal := self._refusal(name, revision, _token(handler), listing=route == self._tree):
                    return _send_error(handler, *refusal)
                return route(handler, self.repositories[name], name, *file, fault=fault)
        handler.send(404)

    def _refusal(self, name: str, revision: str, token: str | None, listing: bool) -> tuple[int, str, str] | None:
        """Status, X-Error-Code and X-Error-Message for those who may not have what they ask for."""
        if token is not None and token not in self.tokens:
            return 401, "", "Invalid credentials in Authorization header"
        found = self.repositories.get(name)
        if found is None or (found.private and token not in found.readers):
            return (401, "RepoNotFound", "Invalid username or password.") if token is None else (404, "RepoNotFound", "Not found")
        if revision != found.commit:
            return 404, "RevisionNotFound", f"Invalid rev id: {revision}"
        if found.gated and token not in found.readers and not listing:
            if token is None:
                return 401, "GatedRepo", f"Access to model {name} is restricted. You must have access to it and be authenticated."
            return 403, "GatedRepo", f"Access to model {name} is restricted and you are not in the authorized list."
        return None

    def _tree(self, handler: _Handler, repository: Repository, name: str, fault: Fault | None) -> None:
        place = urlsplit(handler.path)
        start, rows = int(parse_qs(place.query).get("cursor", ["0"])[0]), []
        for path, data in sorted(repository.files.items())[start : start + PAGE]:
            kept = pointer(data) if is_large(path) else data
            row: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_id(kept)}
            if is_large(path):
                row["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": len(kept)}
                if repository.xet:
                    row["xetHash"] = sha256(data)  # in truth another hash, of the chunks; a client only hands it on
            rows.append(row)
        headers = {"Content-Type": "application/json"}
        if start + PAGE < len(repository.files):
            headers["Link"] = f'<{self.url}{place.path}?recursive=true&cursor={start + PAGE}>; rel="next"'
        handler.send(200, json.dumps(rows).encode(), headers)

    def _resolve(self, handler: _Handler, repository: Repository, name: str, path: str, fault: Fault | None) -> None:
        headers = {"X-Repo-Commit": repository.commit}
        if path not in repository.files:
            return _send_error(handler, 404, "EntryNotFound", "Entry not found", headers)
        data = repository.files[path]
        if is_large(path):
            headers |= {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
            return handler.send(302, headers={**headers, "Location": f"{self.cdn.url}{cdn_path(data)}?{SIGNATURE}"})
        handler.send(307, headers={**headers, "Location": quote(small_path(name, repository.commit, path))})

    def _small_file(self, handler: _Handler, repository: Repository, name: str, path: str, fault: Fault | None) -> None:
        data = repository.files[path]
        handler.send_file(data, fault, {"X-Repo-Commit": repository.commit, "ETag": f'"{git_id(data)}"'})

    def _xet_token(self, handler: _Handler, repository: Repository, name: str, fault: Fault | None) -> None:
        until = str(int(time.time()) + 3600)
        headers = {"X-Xet-Cas-Url": self.cas.url, "X-Xet-Access-Token": "of xet", "X-Xet-Token-Expiration": until}
        handler.send(200, b"{}", headers)


class Cdn(FileServer):
    """Gives files to those who bring the signature, and refuses those who bring a hub's token along, as S3 does."""

    def answer(self, handler: _Handler, path: str, query: str, fault: Fault | None) -> None:
        if query != SIGNATURE:
            return handler.send(403)
        if _token(handler) is not None:
            return handler.send(400)
        super().answer(handler, path, query, fault)


class Cas(FileServer):
    """Says of which pieces on the CDN a file in Xet is made: here of one "xorb", all of its chunks, uncompressed."""

    def __init__(self, cdn: Cdn) -> None:
        super().__init__()
        self.cdn = cdn

    def answer(self, handler: _Handler, path: str, query: str, fault: Fault | None) -> None:
        match = re.fullmatch(r"/v1/reconstructions/(\w+)", path)
        data = self.cdn.files.get(f"/{match[1]}") if match else None
        if match is None or data is None:
            return handler.send(404)  # also of /v2/, whereupon a client goes on to /v1/
        chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        # A chunk's header: version (1 byte), compressed length (3), kind of compression (1), length (3).
        lengths = [len(chunk).to_bytes(3, "little") for chunk in chunks]
        xorb = b"".join(b"\0" + length + b"\0" + length + chunk for length, chunk in zip(lengths, chunks, strict=True))
        self.cdn.files[xorb_path(data)] = xorb
        whole = {"start": 0, "end": len(chunks)}
        url = f"{self.cdn.url}{xorb_path(data)}?{SIGNATURE}"
        pieces = {match[1]: [{"range": whole, "url": url, "url_range": {"start": 0, "end": len(xorb) - 1}}]}
        terms = [{"hash": match[1], "unpacked_length": len(data), "range": whole}]
        found = {"offset_into_first_range": 0, "terms": terms, "fetch_info": pieces}
        handler.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})


def _token(handler: _Handler) -> str | None:
    value = handler.headers.get("Authorization")
    return None if value is None else value.removeprefix("Bearer ")


def _send_error(handler: _Handler, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
    values = {"Content-Type": "application/json", "X-Error-Message": message, **(headers or {})}
    handler.send(status, json.dumps({"error": message}).encode(), values | ({"X-Error-Code": code} if code else {}))


def is_large(path: str) -> bool:
    """Whether a repository keeps the file in LFS."""
    return path.endswith((".safetensors", ".bin"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_id(data: bytes) -> str:
    """The id under which git keeps this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(data: bytes) -> bytes:
    """What git keeps in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n".encode()


# Where things lie, for `fail` and `asked`: on the hub, and on its CDN.


def tree_path(name: str, commit: str) -> str:
    return f"/api/models/{name}/tree/{commit}"


def resolve_path(name: str, commit: str, path: str) -> str:
    return f"/{name}/resolve/{commit}/{path}"


def small_path(name: str, commit: str, path: str) -> str:
    """Where a file that is not in LFS is led to."""
    return f"/api/resolve-cache/models/{name}/{commit}/{path}"


def cdn_path(data: bytes) -> str:
    return f"/{sha256(data)}"


def xorb_path(data: bytes) -> str:
    """Where the chunks of a file in Xet lie."""
    return f"/xorbs/{sha256(data)}"


# ------------------------------------------------------------------------------------------------------------------- uploading


class Receiving(Hub):
    """A hub that also takes uploads of those who bring one of its `tokens`, as `huggingface_hub` sends them without Xet:

    POST /api/repos/create, /api/validate-yaml (a README's), /api/models/<name>/preupload/main, /api/models/<name>/commit/main,
         /<name>.git/info/lfs/objects/batch
    PUT  a large file, to the address that the batch named; those that it has already are asked for no more

    A commit makes the repository downloadable at its id. `uploads`: sha256 of large files, as they came; `checked`: READMEs.
    """

    def __init__(self, tokens: frozenset[str]) -> None:
        super().__init__({}, tokens)
        self.uploads: list[str] = []
        self.messages: list[str] = []
        self.checked: list[str] = []
        self.privates: set[str] = set()
        self._server.RequestHandlerClass = _Receiver

    def receive(self, handler: _Handler, method: str, path: str, body: bytes) -> None:
        """Answer one request that brings something."""
        if method == "PUT":
            self.uploads.append(sha256(body))
            self.cdn.files[cdn_path(body)] = body
            return handler.send(200)
        token = _token(handler)
        if token not in self.tokens:
            return _send_error(handler, 401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            if name in self.repositories:
                there = {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
                return handler.send(409, json.dumps(there).encode(), {"Content-Type": "application/json"})
            self.repositories[name] = Repository({}, "0" * 40)
            if asked.get("private") or asked.get("visibility") == "private":
                self.privates.add(name)
            return self._json(handler, {"url": f"{self.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            self.checked.append(json.loads(body)["content"])
            return self._json(handler, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = [(of["path"], "lfs" if is_large(of["path"]) else "regular") for of in json.loads(body)["files"]]
            return self._json(handler, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = []
            for of in json.loads(body)["objects"]:
                there = f"/{of['oid']}" in self.cdn.files
                actions = {} if there else {"actions": {"upload": {"href": f"{self.url}/upload/{of['oid']}"}}}
                objects.append({"oid": of["oid"], "size": of["size"], **actions})
            return self._json(handler, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(handler, match[1], [json.loads(line) for line in body.splitlines() if line])
        handler.send(404)

    def _commit(self, handler: _Handler, name: str, lines: list[dict[str, dict[str, str]]]) -> None:
        files = dict(self.repositories[name].files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.cdn.files[f"/{value['oid']}"]
        commit = hashlib.sha1(repr(sorted((path, sha256(data)) for path, data in files.items())).encode()).hexdigest()
        self.repositories[name] = Repository(files, commit)
        self._json(
            handler, {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}", "hookOutput": ""}
        )

    def _json(self, handler: _Handler, values: object) -> None:
        handler.send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})


class _Receiver(_Handler):
    def do_POST(self) -> None:
        owner, path = self.server.owner, unquote(urlsplit(self.path).path)
        assert isinstance(owner, Receiving)
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        owner.requests.append(Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        owner.receive(self, self.command, path, body)

    do_PUT = do_POST
