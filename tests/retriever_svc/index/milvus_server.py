"""A Milvus server in a process of its own, which milvus-lite starts: `python milvus_server.py DIRECTORY`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MilvusServer:
    """A running server and its address."""

    process: subprocess.Popen[str]
    uri: str

    @classmethod
    def start(cls, directory: Path, log: Path) -> MilvusServer:
        with log.open("a") as stderr:
            process = subprocess.Popen(
                [sys.executable, __file__, str(directory)], stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"milvus-lite did not start: {log.read_text()}"
        return cls(process, f"http://127.0.0.1:{int(line)}")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def main() -> None:
    from milvus_lite.adapter.grpc.server import start_server_in_thread  # noqa: PLC0415

    server, _, port = start_server_in_thread(sys.argv[1], host="127.0.0.1", port=0)
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
