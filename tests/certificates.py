"""Throw-away certificates, made by the system's openssl."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Pair(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of one test, in a folder of its own."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self.certificate, self._key = self._files(name)
        self._openssl(
            "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def sign(self, name: str, alternative: str = "IP:127.0.0.1") -> Pair:
        """Make a certificate for a server at this address, or for a client."""
        pair, request, extensions = self._files(name), self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\n", encoding="utf-8")
        self._openssl(
            "req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request,
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-days", "2", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-CAcreateserial", "-extfile", extensions, "-out", pair.certificate,
        )  # fmt: skip
        return pair

    def _files(self, name: str) -> Pair:
        return Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def require_openssl() -> None:
    """Skip the test where the system has no openssl; but CI installs it, so there it fails."""
    if shutil.which("openssl") is None:
        assert os.environ.get("CI") != "true", "the system has no openssl"
        pytest.skip("the system has no openssl, which makes the test's certificates")


def tls_options(port: int, authority: Authority, server: Pair, *, clients: str = "no") -> dict[str, str]:
    """Return redis-server's directives; `clients`: whether a client must have a certificate."""
    return {
        "tls-port": str(port),
        "tls-ca-cert-file": str(authority.certificate),
        "tls-cert-file": str(server.certificate),
        "tls-key-file": str(server.key),
        "tls-auth-clients": clients,
    }
