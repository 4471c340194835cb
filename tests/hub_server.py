"""A local server that speaks the Hub's routes for models: who am I, create, upload by commits, download."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import constants

TOKEN = "hf_of_someone"


class Hub(http.server.BaseHTTPRequestHandler):
    """One Hub per subclass, see `serve`: its repositories are {id: {"private", "commits": [(title, files)]}}."""

    url: str
    repositories: dict[str, dict]
    blobs: dict[str, bytes]
    requests: list[str]
    silent: threading.Event | None = None  # uploads get no answer until it is set

    def do_HEAD(self):
        self.resolve(body=False)

    def do_GET(self):
        self.requests.append(f"GET {self.path}")
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if path == "/api/whoami-v2":
            if not self.known():
                return self.answer({"error": "Invalid username or password."}, 401)
            return self.answer({"type": "user", "name": "someone", "orgs": [{"name": "group"}]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+))?", path):
            files = self.files(found[1], found[3] or "main")
            if files is not None:
                self.answer({"id": found[1], "sha": self.sha(files), "siblings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self.files(found[1], found[2])
            if files is not None:
                self.answer([{"type": "file", "oid": self.etag(data), "size": len(data), "path": name}
                             for name, data in files.items()])  # fmt: skip
        else:
            self.resolve(body=True)

    def do_POST(self):
        self.requests.append(f"POST {self.path}")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.silent is not None and "/preupload/" in self.path:
            self.silent.wait(30)
            return
        if not self.known():
            return self.answer({"error": "Invalid username or password."}, 401)
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            is_private = asked.get("private") or asked.get("visibility") == "private"
            there = name in self.repositories
            self.repositories.setdefault(name, {"private": bool(is_private), "commits": []})
            return self.answer({"url": f"{self.url}/{name}"}, 409 if there else 200)
        if path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(content)["content"].split("---\n")[1])
            return self.answer({"errors": [] if header["library_name"] else ["no library"], "warnings": []})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            files = json.loads(content)["files"]
            modes = [{"path": file["path"], "shouldIgnore": False, "oid": None,
                      "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"} for file in files]
            return self.answer({"files": modes})  # fmt: skip
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [one | {"actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                       for one in json.loads(content)["objects"]]  # fmt: skip
            return self.answer({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path)
        assert found, path
        title, files = "", {}
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        self.repositories[found[1]]["commits"].append((title, files))
        oid = self.sha(files)
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{found[1]}/commit/{oid}"})

    def do_PUT(self):
        self.requests.append(f"PUT {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.blobs[oid] = content
        self.answer({})

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files at a revision; answers by itself where there is none."""
        repository = self.repositories.get(name)
        if repository is None or (repository["private"] and not self.known()):
            return self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        commits = {self.sha(files): files for _, files in repository["commits"]}
        if commits:
            commits["main"] = repository["commits"][-1][1]
        if revision not in commits:
            return self.answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
        return commits[revision]

    def resolve(self, body: bool):
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urllib.parse.unquote(self.path))
        if not found:
            return self.answer({}, 404)
        files = self.files(found[1], found[2])
        if files is None:
            return None
        if found[3] not in files:
            return self.answer({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.sha(files)})
        data = files[found[3]]
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.sha(files))
        self.send_header("ETag", f'"{self.etag(data)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @staticmethod
    def sha(files: dict[str, bytes]) -> str:
        return hashlib.sha1(repr(sorted((name, hashlib.sha1(d).hexdigest()) for name, d in files.items())).encode()
                            ).hexdigest()  # fmt: skip

    @staticmethod
    def etag(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def log_message(self, *_args):
        pass


@contextlib.contextmanager
def serve() -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"repositories": {}, "blobs": {}, "requests": [], "silent": None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield handler
    finally:
        if handler.silent is not None:
            handler.silent.set()
        server.shutdown()
        thread.join()
        server.server_close()


def point_to(url: str, monkeypatch, tmp_path: Path) -> None:
    """The client of this process and those of its children talk to `url`, as someone."""
    for name, value in (
        ("ENDPOINT", url), ("HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_CACHE", str(tmp_path / "cache")),
    ):  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    environment = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
