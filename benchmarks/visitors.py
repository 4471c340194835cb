"""How the page bears visitors who all come at once: how many are answered, how long they wait, what it takes.

    python benchmarks/visitors.py CHECKPOINT PICTURE [--visitors 50 200] [--program "python -m nanocaption"]

Each visitor does what a browser does: opens the page, uploads the picture, and asks for its captions. --program may be
that of another build. One more figure: what a visitor waits while another one has sent 20 pictures just before.
"""

import argparse
import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import httpx

API = "gradio_api"
HEAVY = 20


class Visit(NamedTuple):
    end: str  # "answered", "refused", or what failed
    seconds: float


async def told(client: httpx.AsyncClient, session: str, function: int, data: list) -> str:
    """Ask the page for one thing; "" where it was answered, else the reason."""
    body = {"data": data, "fn_index": function, "session_hash": session, "trigger_id": None, "event_data": None}
    joined = await client.post(f"{API}/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    async with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as lines:
        async for line in lines.aiter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                said = str(message["output"].get("data" if message["success"] else "error"))
                return said if not message["success"] or "nc problem" in said else ""
    return "the stream ended"


async def visit(address: str, picture: bytes, number: int, beams: int) -> Visit:
    start, session = time.monotonic(), f"visitor{number}"
    try:
        async with httpx.AsyncClient(base_url=address, timeout=600) as client:
            await client.get("config")
            name = f"{number}.jpg"
            upload = await client.post(f"{API}/upload", files=[("files", (name, picture + str(number).encode()))])
            if upload.status_code != 200:
                return Visit("refused", time.monotonic() - start)
            file = {"path": upload.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            for function, data in ((0, [file]), (1, [None, beams, 3, 0.7])):
                if reason := await told(client, session, function, data):
                    polite = re.search("try again|full", reason)
                    return Visit("refused" if polite else reason[:80], time.monotonic() - start)
        return Visit("answered", time.monotonic() - start)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Visit(f"{type(error).__name__}", time.monotonic() - start)


async def all_at_once(address: str, picture: bytes, numbers: range) -> list[Visit]:
    return await asyncio.gather(*(visit(address, picture, number, 3) for number in numbers))


async def beside_a_heavy_one(address: str, picture: bytes) -> tuple[Visit, Visit]:
    """(a visitor who is alone, one who comes when another has sent HEAVY pictures in tabs of one browser)."""
    alone = await visit(address, picture, 5000, 3)
    async with httpx.AsyncClient(base_url=address, timeout=600) as heavy:
        await heavy.get("config")

        async def tab(number: int) -> str:
            upload = await heavy.post(f"{API}/upload", files=[("files", ("a.jpg", picture + str(number).encode()))])
            if upload.status_code != 200:
                return "refused"
            file = {"path": upload.json()[0], "orig_name": "a.jpg", "meta": {"_type": "gradio.FileData"}}
            session = f"tab{number}"
            return await told(heavy, session, 0, [file]) or await told(heavy, session, 1, [None, 10, 8, 1])

        tabs = [asyncio.create_task(tab(number)) for number in range(HEAVY)]
        await asyncio.sleep(3 * alone.seconds)
        other = await visit(address, picture, 5001, 3)
        for one in tabs:
            one.cancel()
        await asyncio.gather(*tabs, return_exceptions=True)
    return alone, other


def memory(process: int) -> tuple[float, float]:
    """(resident now, most so far) in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    now, most = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def line(name: str, visits: list[Visit], process: int, folder: Path, seconds: float) -> str:
    times = sorted(visit.seconds for visit in visits if visit.end == "answered") or [0.0]
    ends = {end: sum(visit.end == end for visit in visits) for end in sorted({visit.end for visit in visits})}
    now, most = memory(process)
    return (f"{name}: {', '.join(f'{count} {end}' for end, count in ends.items())}; answered after "
            f"{times[len(times) // 2]:.1f} s (median), {times[-1]:.1f} s (last); {seconds:.0f} s in all; resident "
            f"{now:.0f} MiB, most {most:.0f} MiB; {disk(folder) / 1e6:.1f} MB of pictures left")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--visitors", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--program", default=f"{sys.executable} -m nanocaption", help="[this build]")
    parser.add_argument("--port", type=int, default=7990)
    arguments = parser.parse_args()
    picture = arguments.picture.read_bytes()
    with tempfile.TemporaryDirectory() as temporary:
        command = [*shlex.split(arguments.program), "demo", arguments.checkpoint, "--port", str(arguments.port)]
        environment = os.environ | {"TMPDIR": temporary}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as page:
            try:
                measure(page, arguments.visitors, picture, Path(temporary))
            finally:
                page.send_signal(signal.SIGTERM)


def measure(page: subprocess.Popen, counts: list[int], picture: bytes, folder: Path) -> None:
    address = re.search(r"http://[\d.]+:\d+/", page.stdout.readline())[0]
    asyncio.run(all_at_once(address, picture, range(3)))
    print(line("after 3", [], page.pid, folder, 0), flush=True)
    for count in counts * 2:
        start = time.monotonic()
        visits = asyncio.run(all_at_once(address, picture, range(count)))
        print(line(f"{count} at once", visits, page.pid, folder, time.monotonic() - start), flush=True)
    alone, other = asyncio.run(beside_a_heavy_one(address, picture))
    print(f"alone: {alone.end} after {alone.seconds:.1f} s; beside {HEAVY} of another visitor: {other.end} after "
          f"{other.seconds:.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
