"""A hub in small: directories as data sets or models, over HTTP here, with faults to order.

It speaks what huggingface_hub and datasets ask of the real one: what a repository is, its tree, the
existence of paths, and files by HEAD and GET with the headers that tell commit, size and hash.
"""

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class Hub:
    """Serves `root/OWNER/NAME/...`; what it was asked for is in `asked`."""

    def __init__(self, root: Path):
        self.root = root
        self.commit = secrets.token_hex(20)
        self.moved_from = self.commit
        """An older commit, which is still served."""
        self.asked: list[tuple[str, str, str]] = []
        """Method, path, and range, of every request."""
        self.cut: dict[str, int] = {}
        """File name to how many bytes of it come before the connection breaks, once."""
        self.damage: dict[str, int] = {}
        """File name to how many times it arrives with another last byte."""
        self.broken: dict[str, int] = {}
        """File name to the status that takes its place."""
        self.pause = 0.0
        """Seconds after every 256 kB of a file."""
        self.token: str | None = None
        """What a reader has to show, where the repository is private."""
        self.url = ""

    def fetched(self, name: str) -> list[str]:
        """The ranges in which a file was read."""
        return [r for method, path, r in self.asked if method == "GET" and path.endswith(name)]


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Run a hub on a free port until the block ends."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # readers that are killed
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        words = path.strip("/").split("/")
        api = words[0] == "api" and words[1] in ("datasets", "models")
        if words[0] not in ("api", "datasets"):  # files of models lie at the top
            words = ["models", *words]
        name = "/".join(words[2:4] if api else words[1:3])
        repository = self.hub.root / name
        shown = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if not repository.is_dir() or (self.hub.token and not shown):
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if api:
            return self._send_json(*self._describe(repository, name, words[4:], body))
        return self._send_file(repository, "/".join(words[5:]))

    def _describe(
        self, repository: Path, name: str, words: list[str], body: str
    ) -> tuple[int, object]:
        files = sorted(p for p in repository.rglob("*") if p.is_file())
        if words and words[0] in ("revision", "tree", "paths-info") and words[1] not in (
            "main", self.hub.commit, self.hub.moved_from,
        ):  # fmt: skip
            return 404, "RevisionNotFound"
        if not words or words[0] == "revision":
            siblings = [{"rfilename": str(p.relative_to(repository))} for p in files]
            about = {"id": name, "sha": self.hub.commit, "siblings": siblings}
            return 200, {**about, "private": False, "disabled": False, "gated": False}
        if words[0] == "tree":
            below = repository.joinpath(*words[2:])
            deep = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
            found = sorted(below.rglob("*") if deep else below.iterdir()) if below.is_dir() else []
            if not below.exists():
                return 404, "EntryNotFound"
            return 200, [_entry(repository, p) for p in found]
        if words[0] == "paths-info":
            paths = [repository / p for p in _paths(body)]
            return 200, [_entry(repository, p) for p in paths if p.exists()]
        return 404, "NoSuchPage"

    def _send_json(self, status: int, content: object) -> None:
        error = {} if status == 200 else {"X-Error-Code": str(content)}
        if error:
            content = {"error": content}
        self._send(status, json.dumps(content).encode(), error)

    def _send_file(self, repository: Path, name: str) -> None:
        path, short = repository / name, Path(name).name
        common = {"X-Repo-Commit": self.hub.commit}
        if status := self.hub.broken.get(short):
            return self._send(status, b"", common)
        if not path.is_file():
            return self._send(404, b"", {**common, "X-Error-Code": "EntryNotFound"})
        raw = path.read_bytes()
        common |= {"ETag": f'"{digest(path)}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return self._send(200, raw, common)
        if self.hub.damage.get(short, 0) > 0:
            self.hub.damage[short] -= 1
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        start, status = 0, 200
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) if last else len(raw) - 1
            common["Content-Range"] = f"bytes {start}-{min(end, len(raw) - 1)}/{len(raw)}"
            raw, status = raw[start : end + 1], 206
        self._send(status, raw, common, self.hub.cut.pop(short, None))

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body[:cut]), 2**18):
            self.wfile.write(body[:cut][start : start + 2**18])
            time.sleep(self.hub.pause)
        if cut is not None:
            self.close_connection = True


def digest(path: Path) -> str:
    """What the hub knows a file by: sha256 of what lies in LFS, else git's hash."""
    raw = path.read_bytes()
    if _is_large(path):
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def _is_large(path: Path) -> bool:
    return path.suffix in (".bin", ".npy", ".parquet", ".safetensors")


def _entry(repository: Path, path: Path) -> dict[str, object]:
    name = str(path.relative_to(repository))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    size = path.stat().st_size
    lfs = {"oid": digest(path), "size": size, "pointerSize": 134}
    about = {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(b"").hexdigest()}
    return {**about, **({"lfs": lfs} if _is_large(path) else {"oid": digest(path)})}


def _paths(body: str) -> list[str]:
    if body.startswith("{"):
        return json.loads(body)["paths"]
    return parse_qs(body).get("paths", [])
