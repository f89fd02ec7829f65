"""Gets a published data set's files from their authors' repositories, and checks them:

    python -m reft_jax.data.fetch gsm8k|svamp|mathqa|mathqa-numeric --to=DIR

GSM8K's own files are train.jsonl and test.jsonl; the others are the ReFT authors': NAME_nl.json and NAME_python_sdp.json to train on, and
NAME_test_set.json. The same command again finds them and checks them; a download that was cut short or killed goes on where it was.
A file that was brought here in another way is checked in its place. Exit codes: 0 all are there, 1 one could not be had, 2 wrong usage, or
another file is in its place.
"""

import dataclasses
import errno
import hashlib
import http.client
import os
import pathlib
import sys
import urllib.error
import urllib.request

from reft_jax import commands
from reft_jax.commands import Flag
from reft_jax.config.paths import expanded
from reft_jax.errors import InputError, RunError

GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
AUTHORS = "https://raw.githubusercontent.com/lqtrung1998/mwp_ReFT/bdc844e02e5c783d4361d7777f4ad486e7e116da/data/"
MIT, APACHE = "MIT (Cobbe et al., arXiv 2110.14168)", "Apache-2.0 (github.com/lqtrung1998/mwp_ReFT)"
TIMEOUT_S, CHUNK = 60, 2**20


@dataclasses.dataclass(frozen=True)
class File:
    """A file at its address. `digest`: its SHA-256, or (40 digits) its id as a blob of the repository, which Git makes with SHA-1."""

    url: str
    digest: str
    licence: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def _files(base: str, licence: str, **digests: str) -> tuple[File, ...]:
    return tuple(File(f"{base}{name}", digest, licence) for name, digest in digests.items())


DATA = {
    "gsm8k": (
        *_files(
            GSM8K,
            MIT,
            **{
                "train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
                "test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            },
        ),
        *_files(
            AUTHORS,
            APACHE,
            **{
                "gsm8k_nl.json": "deb398325d6e8f1f984ad993dd5c4de7444c1e33",
                "gsm8k_python_sdp.json": "f1b5c9bce340a249333831b7dc63a78b74a646a4",
                "gsm8k_test_set.json": "0f2e17554946d235d2c0cdf9343bb9d3319007bba9596e0665d4f8b341f57016",
            },
        ),
    ),
    "svamp": _files(
        AUTHORS,
        APACHE,
        **{
            "svamp_nl.json": "12e9ee172f08987112244dc95a03877353874b24ff3b8481eab675123b8fdd9d",
            "svamp_python_sdp.json": "09936759f652750064b1cb0dc81bce893f0b3e4a21e81d63d5cf738e0a379c3c",
            "svamp_test_set.json": "baba23c85982adad6b7f6a9d6c6cf3b82c4135364a5ac36b8447add90f783d85",
        },
    ),
    "mathqa": _files(
        AUTHORS,
        APACHE,
        **{
            "mathqa_nl.json": "3b7af65bad55c86a4873cc8dd86261cdb8cff4f2",
            "mathqa_python_sdp.json": "188c079ee89e55b65311cf23e1ef72b0c3bf3d68",
            "mathqa_test_set.json": "0bcd2eaceeb419e6d9ce55aa20f064e92f3ce9fcf7725bfc5a0bf320769cd8bc",
        },
    ),
    "mathqa-numeric": _files(
        AUTHORS,
        APACHE,
        **{
            "mathqa-numeric_nl.json": "a53a8a6f041efc5e7d724222bf6472f231b36bce",
            "mathqa-numeric_python_sdp.json": "587adb5c00e836bffd4c5452668f64fdb3fef5f2",
            "mathqa-numeric_test_set.json": "7106aa5810115db4d2767a87753fa549fb870e69a517136b5f690c434072f421",
        },
    ),
}
FLAGS = {"NAME": Flag(commands.one_of(*DATA), needed=True), "--to": Flag(expanded, needed=True)}


def digest_of(path: pathlib.Path, like: str) -> str:
    """The file's SHA-256, or its id as Git's blob where `like` has 40 digits."""
    start = b"blob %d\0" % path.stat().st_size
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256" if len(like) == 64 else lambda: hashlib.sha1(start)).hexdigest()


def is_there(path: pathlib.Path, digest: str) -> bool:
    """Whether the right file is in its place; InputError where another is."""
    if not path.exists():
        return False
    if path.is_dir() or (found := digest_of(path, digest)) != digest:
        what = "is a folder" if path.is_dir() else f"is another file (its checksum is {found}, not {digest})"
        raise InputError(f"{path}: {what}; move it away, or choose another --to")
    return True


def settle(part: pathlib.Path, path: pathlib.Path, digest: str, source: str):
    """Moves what was made aside into its place if it is whole; else removes it. RunError."""
    if (found := digest_of(part, digest)) != digest:
        part.unlink()
        raise RunError(
            f"{source}: what came has the checksum {found}, not {digest}; it was removed, nothing was written"
        )
    os.replace(part, path)


def download(url: str, path: pathlib.Path, digest: str):
    """The file of an address, by way of PATH.part, which a later call goes on with. RunError where it cannot be had."""
    part = path.with_name(f"{path.name}.part")
    elsewhere = f"fetch it on a machine that can, put it at {path}, and the same command checks it"
    had = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={had}-"} if had else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            had = had if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            left = int(answer.headers.get("Content-Length", -1))
            with open(part, "ab" if had else "wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    left -= len(chunk)
        if left > 0:  # the reader says nothing of it
            raise OSError(f"the connection ended {left} bytes early")
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # then nothing is left to come
            raise RunError(f"{url}: the server says {error.code} {error.reason}; {elsewhere}") from error
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        said = getattr(error, "reason", error)
        raise RunError(f"{url}: cannot be had ({said}); the same command goes on, or {elsewhere}") from error
    settle(part, path, digest, url)


def tell(path: pathlib.Path, licence: str, how: str):
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {how} and checked; licence: {licence}", flush=True)


def folder(path: pathlib.Path) -> pathlib.Path:
    """The folder, made if absent; InputError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--to={path}: no folder can be made there ({error.strerror}); choose another") from error
    return path


@commands.command()
def main(argv: list[str]) -> int:
    given = commands.parse(argv, __doc__, FLAGS)
    target = folder(given["to"])
    for file in DATA[given["NAME"]]:
        path = target / file.name
        there = is_there(path, file.digest)
        if not there:
            download(file.url, path, file.digest)
        tell(path, file.licence, "found" if there else "fetched")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
