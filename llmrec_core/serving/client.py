"""The light side of serving: starts the child process when needed and asks it, one question at a time."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from llmrec_core import errors
from llmrec_core.errors import LLMRecError, RunFailedError
from llmrec_core.runs.processes import sharing_environment
from llmrec_core.workspace import Workspace


class ServingClient:
    """Rankings and explanations for pages that must not load PyTorch themselves.

    Thread-safe: callers from several browser sessions wait for each other. A child that died is started anew at
    the next call.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._next_id = 0

    def call(self, action: str, *, timeout_s: float = 300.0, **args: Any) -> dict[str, Any]:
        """The result of ``action``; see :class:`llmrec_core.serving.actions.Server` for names and arguments.

        Raises:
            LLMRecError: what the action raised, of the same class; or the child died or took longer than
                ``timeout_s`` (it is stopped then, and its memory freed).
        """
        with self._lock:
            process = self._ensure_running()
            self._next_id += 1
            request = {"id": self._next_id, "action": action, "args": args}
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request, ensure_ascii=False) + "\n")
                process.stdin.flush()
                line = self._answers.get(timeout=timeout_s)
            except queue.Empty:
                self._stop()
                raise RunFailedError(
                    f"no answer within {timeout_s:g} s; the model process was stopped.",
                    where=action,
                    fix="Try a smaller question, or again.",
                ) from None
            except OSError:
                line = None
            if line is None:
                code = self._stop()
                raise RunFailedError(
                    f"the model process ended unexpectedly (exit status {code}).",
                    where=action,
                    fix=f"Try again; its last words are in {self._log_path}.",
                )
        answer = json.loads(line)
        if "error" in answer:
            fault = answer["error"]
            kind = getattr(errors, fault["type"], LLMRecError)
            raise kind(fault["what"], where=fault["where"], fix=fault["fix"])
        result: dict[str, Any] = answer["result"]
        return result

    @property
    def running(self) -> bool:
        """Whether the child holds memory now."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ends the child; the next call starts a new one."""
        with self._lock:
            self._stop()

    @property
    def _log_path(self) -> str:
        return str(self.workspace.root / "serving.log")

    def _ensure_running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        self._answers = queue.Queue()
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment = {**os.environ, **sharing_environment(), **offline}
        with open(self._log_path, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llmrec_core.serving.server", str(self.workspace.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        threading.Thread(target=_pump, args=(self._process, self._answers), daemon=True).start()
        return self._process

    def _stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if process.stdin is not None and not process.stdin.closed:
            # A broken pipe means that the child is gone already, which is what was wanted.
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            return process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _pump(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    """Moves answers from the pipe into the queue; None marks the end."""
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            answers.put(line)
    answers.put(None)


_clients: dict[str, ServingClient] = {}
_clients_lock = threading.Lock()


def serving_client(workspace: Workspace) -> ServingClient:
    """The one client of this process for that workspace."""
    with _clients_lock:
        key = str(workspace.root)
        if key not in _clients:
            _clients[key] = ServingClient(workspace)
            atexit.register(_clients[key].stop)
        return _clients[key]
