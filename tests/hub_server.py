"""A loopback Hub with the handful of endpoints that huggingface_hub needs to push and pull models, and `datasets` to read."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


TOKEN = "hf_test_token"
USER = "tester"


class HubServer:
    """Repositories in memory, one branch list each; `with HubServer() as hub:` serves them at `hub.url`.

    `broken` holds file names whose download stops half way.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.lfs: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.requests: list[str] = []
        self.is_gone = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        # Connections that clients keep alive have threads of their own.
        self.is_gone = True
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Any) -> dict[str, str]:
        """What a process needs to find this Hub and nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def commit(self, repo_id: str, branch: str, files: dict[str, bytes]) -> str:
        repo = self.repos[repo_id]
        tree = {**repo["trees"].get(repo["branches"].get(branch), {}), **files}
        sha = hashlib.sha1(repr((branch, len(repo["trees"]), sorted(tree))).encode()).hexdigest()
        repo["trees"][sha] = tree
        repo["branches"][branch] = sha
        return sha

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo["trees"][repo["branches"][branch]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *arguments: object) -> None:
        pass

    # --- plumbing -------------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        if self.hub.is_gone:
            self.close_connection = True
            return
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "api":
            self._api(parts[1:], body)
        elif parts[0] == "lfs-store":
            self.hub.lfs[parts[1]] = body
            self._json({})
        elif len(parts) > 2 and parts[1].endswith(".git"):
            self._lfs_batch(json.loads(body))
        elif len(parts) > 5 and parts[0] == "datasets" and parts[3] == "resolve":
            self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "EntryNotFound", f"no such page: {self.path}")

    def _send(self, status: int, body: bytes, headers: dict[str, str], broken: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if broken:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # --- endpoints ------------------------------------------------------------------------------------------------

    def _api(self, parts: list[str], body: bytes) -> None:
        if parts[0] == "validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif parts[0] == "whoami-v2" and self._authorised():
            self._json({"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}})
        elif parts == ["repos", "create"]:
            self._create(json.loads(body))
        elif parts[0] in ("models", "datasets") and len(parts) >= 3:
            self._repository(parts[0], "/".join(parts[1:3]), parts[3:], body)
        else:
            self._error(404 if self._authorised() else 401, "", f"no such endpoint: {self.path}")

    def _create(self, request: dict[str, Any]) -> None:
        if not self._authorised():
            self._error(401, "", "Invalid username or password.")
            return
        repo_id = f"{request.get('organization') or USER}/{request['name']}"
        exists = repo_id in self.hub.repos
        private = bool(request.get("private")) or request.get("visibility") == "private"
        if not exists:
            self.hub.repos[repo_id] = {"private": private, "branches": {}, "trees": {}}
            self.hub.commit(repo_id, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        answer = {"url": f"{self.hub.url}/{repo_id}", "id": repo_id, "name": repo_id}
        self._json(
            {**answer, "error": "You already created this model repo"} if exists else answer, 409 if exists else 200
        )

    def _visible(self, repo_id: str) -> dict[str, Any] | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo["private"] and not self._authorised()):
            # As the Hub does, so that names of private repositories do not leak.
            self._error(404 if self._authorised() else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _repository(self, repo_type: str, repo_id: str, parts: list[str], body: bytes) -> None:
        repo = self._visible(repo_id)
        if repo is None:
            return
        action = parts[0] if parts else "info"
        revision = parts[1] if len(parts) > 1 else "main"
        if action == "paths-info":
            files = repo["trees"].get(repo["branches"].get(revision, revision), {})
            folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
            wanted = _wanted_paths(body)
            self._json(
                [_entry(path, files[path]) for path in wanted if path in files]
                + [_folder(path) for path in wanted if path in folders]
            )
        elif self.command == "POST" and not self._authorised():
            self._error(403, "", "write access is needed")
        elif action == "branch":
            repo["branches"].setdefault(revision, repo["branches"]["main"])
            self._json({})
        elif action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        elif action == "commit":
            sha = self.hub.commit(repo_id, revision, self._committed_files(body))
            self._json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "success": True})
        elif action in ("info", "revision"):
            sha = repo["branches"].get(revision, revision)
            if sha not in repo["trees"]:
                self._error(404, "RevisionNotFound", f"no revision {revision}")
                return
            siblings = [{"rfilename": path} for path in sorted(repo["trees"][sha])]
            self._json({"id": repo_id, "sha": sha, "private": repo["private"], "siblings": siblings, "tags": []})
        elif action == "tree":
            sha = repo["branches"].get(revision, revision)
            folder = "".join(part + "/" for part in parts[2:])
            found = {path: content for path, content in repo["trees"].get(sha, {}).items() if path.startswith(folder)}
            if not found:
                self._error(404, "EntryNotFound", f"no folder {folder}")
                return
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            is_recursive = repo_type == "models" or query.get("recursive", [""])[0].lower() in ("true", "1")
            self._json(_entries(found, folder, is_recursive))
        elif action == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                for name, sha in repo["branches"].items()
            ]
            self._json({"branches": branches, "tags": [], "converts": []})
        else:
            self._error(404, "EntryNotFound", f"no such endpoint: {self.path}")

    def _committed_files(self, body: bytes) -> dict[str, bytes]:
        files = {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        return files

    def _lfs_batch(self, request: dict[str, Any]) -> None:
        objects = []
        for wanted in request["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs-store/{wanted['oid']}"}}
            objects.append({**wanted, **({} if wanted["oid"] in self.hub.lfs else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self._visible(repo_id)
        if repo is None:
            return
        sha = repo["branches"].get(revision, revision)
        if sha not in repo["trees"]:
            self._error(404, "RevisionNotFound", f"no revision {revision}")
            return
        content = repo["trees"][sha].get(path)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        headers = {"ETag": f'"{_git_hash(content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if "Range" in self.headers and self.command == "GET":
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._send(206, content[start : end + 1], headers)
            return
        self._send(200, content, headers, broken=path in self.hub.broken and self.command == "GET")


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": _git_hash(path.encode())}


def _entries(found: dict[str, bytes], folder: str, is_recursive: bool) -> list[dict[str, Any]]:
    inside = {path: content for path, content in found.items() if is_recursive or "/" not in path[len(folder) :]}
    folders = {folder + path[len(folder) :].partition("/")[0] for path in found if path not in inside}
    return [_folder(path) for path in sorted(folders)] + [_entry(path, inside[path]) for path in sorted(inside)]


def _wanted_paths(body: bytes) -> list[str]:
    text = body.decode()
    return json.loads(text)["paths"] if text.startswith("{") else urllib.parse.parse_qs(text).get("paths", [])


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
