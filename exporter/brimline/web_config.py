"""The file of `--web.config.file`: TLS, users and headers of our own port, as Prometheus' exporters have it.

The format is that of exporter-toolkit (docs/web-configuration.md there, of 2026). What Python's TLS cannot
do is refused by name rather than left out.
"""

from __future__ import annotations

import calendar
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from brimline import units
from brimline.errors import ConfigError
from brimline.files import NotARegularFile, open_regular
from brimline.strict_yaml import Place, Schema, Source, dotted, read_struct, read_text

MAX_PEM_BYTES = 1 << 20
# 16 takes about four seconds of a processor for each password that was not seen before, 10 about 60 ms.
MAX_COST = 16
# So long before its end a certificate is warned of: who renews by hand needs some days for it.
WARN_DAYS = 14

ClientAuth = Literal[
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "RequireClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TlsServer(_Struct, frozen=True):
    """`tls_server_config`."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: ClientAuth = "NoClientCert"
    client_allowed_sans: list[str] | None = None
    min_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS12"
    max_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] = "TLS13"
    cipher_suites: list[str] = []
    prefer_server_cipher_suites: bool = True
    curve_preferences: list[str] = []


class HttpServer(_Struct, frozen=True):
    """`http_server_config`."""

    http2: bool | None = None
    headers: dict[str, str] = {}


class RateLimit(_Struct, frozen=True):
    """`rate_limit`: a bucket of `burst` requests, one more each `interval`."""

    interval: str | int = 0
    burst: int = 0


class WebFile(_Struct, frozen=True):
    """The whole file."""

    tls_server_config: TlsServer | None = None
    http_server_config: HttpServer | None = None
    basic_auth_users: dict[str, str] | None = None
    rate_limit: RateLimit | None = None


_SCHEMA = Schema(
    keys_at={
        (): WebFile,
        ("tls_server_config",): TlsServer,
        ("http_server_config",): HttpServer,
        ("rate_limit",): RateLimit,
    },
    secret_keys=frozenset({"basic_auth_users", "key", "cert", "client_ca"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """What our port does by the file.

    tls: None for plain HTTP. client_names: of a client's certificate, one of which must stand there; None
    where any will do. users: bcrypt hashes by name. refill_seconds, burst: None without a rate limit. notes:
    what the file asks for and is left out because it makes no difference. paths: of all files read.
    certificate_ends: when the first certificate of our chain ends, in seconds of the epoch.
    """

    tls: ssl.SSLContext | None = None
    client_names: frozenset[str] | None = None
    verifies_clients: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    refill_seconds: float | None = None
    burst: int = 0
    notes: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    certificate_ends: float | None = None

    def describe(self) -> str:
        """What the port does, in a line."""
        least = "TLS 1.3" if self.tls and self.tls.minimum_version is ssl.TLSVersion.TLSv1_3 else "TLS 1.2"
        parts = ["no TLS" if self.tls is None else f"{least} or newer"]
        if self.users:
            parts.append(f"{len(self.users)} user{'s' if len(self.users) > 1 else ''}")
        if self.tls is not None and self.tls.verify_mode is not ssl.CERT_NONE:
            parts.append(
                f"client certificates {'required' if self.verifies_clients else 'verified where given'}"
            )
        if not self.authenticates:
            parts.append("everybody may ask")
        return ", ".join(parts)

    def certificate_doubt(self, now: float) -> str | None:
        """That the port's own certificate has expired or soon will; None elsewhere."""
        if self.certificate_ends is None or self.certificate_ends - now > WARN_DAYS * 86400:
            return None
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.certificate_ends))
        if self.certificate_ends <= now:
            return f"the certificate of tls_server_config expired on {day}; renew it"
        return f"the certificate of tls_server_config ends on {day}, within {WARN_DAYS} days; renew it"

    @property
    def authenticates(self) -> bool:
        """True where not everybody who reaches the port may ask."""
        return bool(self.users) or self.verifies_clients


def load_web_config(path: Path) -> WebConfig:
    """What the file says, and the certificates that it names. Raises ConfigError."""
    file, source = read_struct(read_text(path), str(path), WebFile, _SCHEMA)
    notes: list[str] = []
    tls: ssl.SSLContext | None = None
    client_names: frozenset[str] | None = None
    certificate_ends: float | None = None
    paths = [path]
    if file.tls_server_config is not None:
        server = _Tls(file.tls_server_config, path.parent, source)
        tls, client_names = server.context(), server.client_names()
        certificate_ends = server.certificate_ends
        notes += server.notes
        paths += server.paths
    elif source.has("tls_server_config"):
        raise source.error(
            ("tls_server_config",), "tls_server_config is empty; give cert_file and key_file, or remove it"
        )
    http = file.http_server_config or HttpServer()
    if http.http2:
        notes.append("http2: this port speaks HTTP/1.1 only, which every client falls back to")
    refill_seconds, burst = _rate_limit(file.rate_limit, source)
    return WebConfig(
        tls=tls,
        client_names=client_names,
        verifies_clients=tls is not None and tls.verify_mode is ssl.CERT_REQUIRED,
        headers=_headers(http.headers, source),
        users=_users(file.basic_auth_users, source),
        refill_seconds=refill_seconds,
        burst=burst,
        notes=tuple(notes),
        paths=tuple(paths),
        certificate_ends=certificate_ends,
    )


# --- TLS ---

_TLS: Place = ("tls_server_config",)
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

# Go's names of the suites that Go calls safe (crypto/tls CipherSuites() of 1.23), and OpenSSL's.
_SUITES = {
    f"TLS_ECDHE_{key}_WITH_{go}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for go, openssl in (
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
    )
}
_SUITES_OF_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")


class _Tls:
    """`tls_server_config`, on its way to a context of Python's ssl."""

    def __init__(self, said: TlsServer, folder: Path, source: Source) -> None:
        self.said = said
        self.source = source
        self.folder = folder
        self.notes: list[str] = []
        self.paths: list[Path] = []
        self.certificate_ends: float | None = None

    def refuse(self, key: str, what: str) -> ConfigError:
        return self.source.error((*_TLS, key), what)

    def context(self) -> ssl.SSLContext:
        said = self.said
        for one, other in (("cert", "cert_file"), ("key", "key_file"), ("client_ca", "client_ca_file")):
            if getattr(said, one) and getattr(said, other):
                raise self.refuse(other, f"{one} and {other} both stand here; keep one")
        for one, other in (("cert", "cert_file"), ("key", "key_file")):
            if not getattr(said, one) and not getattr(said, other):
                raise self.refuse(other, f"{other} is missing; TLS needs a certificate and its key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        self._versions(context)
        self._ciphers(context)
        self._curve(context)
        self._own_certificate(context)
        self._client_certificates(context)
        return context

    def client_names(self) -> frozenset[str] | None:
        names = self.said.client_allowed_sans
        if names is None:
            return None
        if self.said.client_auth_type != "RequireAndVerifyClientCert":
            raise self.refuse(
                "client_allowed_sans",
                "client_allowed_sans needs a client that shows a certificate; "
                "write client_auth_type: RequireAndVerifyClientCert",
            )
        if not names:
            raise self.refuse(
                "client_allowed_sans", "client_allowed_sans is empty, which lets nobody in; name one"
            )
        return frozenset(names)

    def _versions(self, context: ssl.SSLContext) -> None:
        for key in ("min_version", "max_version"):
            version = getattr(self.said, key)
            if version not in _VERSIONS:
                raise self.refuse(
                    key, f"{version} is broken and not spoken here; write {key}: TLS12 or TLS13"
                )
        if self.said.min_version > self.said.max_version:
            raise self.refuse(
                "min_version", "min_version is above max_version, which leaves none; write min_version: TLS12"
            )
        context.minimum_version = _VERSIONS[self.said.min_version]
        context.maximum_version = _VERSIONS[self.said.max_version]

    def _ciphers(self, context: ssl.SSLContext) -> None:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if self.said.prefer_server_cipher_suites:
            context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        if not self.said.cipher_suites:
            return
        names = []
        for index, suite in enumerate(self.said.cipher_suites):
            if suite in _SUITES_OF_TLS13:
                self.notes.append(f"cipher_suites: {suite} is of TLS 1.3, whose suites are always on")
            elif suite in _SUITES:
                names.append(_SUITES[suite])
            else:
                known = ", ".join((*_SUITES_OF_TLS13, *_SUITES))
                raise self.source.error(
                    (*_TLS, "cipher_suites", index),
                    f"unknown or unsafe cipher suite {suite[:60]!r}; known: {known}",
                )
        if not names and self.said.min_version == "TLS12":
            raise self.refuse(
                "cipher_suites",
                "cipher_suites names none of TLS 1.2, which nobody could speak then; "
                "add one, or write min_version: TLS13",
            )
        if names:
            try:
                context.set_ciphers(f"@SECLEVEL=2:{':'.join(names)}")
            except ssl.SSLError:
                raise self.refuse(
                    "cipher_suites", "this OpenSSL has none of these cipher suites; remove cipher_suites"
                ) from None

    def _curve(self, context: ssl.SSLContext) -> None:
        curves = self.said.curve_preferences
        for index, curve in enumerate(curves):
            if curve not in _CURVES:
                raise self.source.error(
                    (*_TLS, "curve_preferences", index),
                    f"unknown curve {curve[:60]!r}; known: {', '.join(_CURVES)}",
                )
        if len(curves) > 1:
            raise self.refuse(
                "curve_preferences",
                "Python's TLS can be held to one curve, not to several in an order; "
                "keep one, or remove curve_preferences for OpenSSL's own order",
            )
        for curve in curves:
            context.set_ecdh_curve(_CURVES[curve])

    def _own_certificate(self, context: ssl.SSLContext) -> None:
        cert, key = self._pem("cert"), self._pem("key")
        cert_key, key_key = (
            ("cert" if self.said.cert else "cert_file"),
            ("key" if self.said.key else "key_file"),
        )
        if b"-----BEGIN CERTIFICATE-----" not in cert:
            raise self.refuse(cert_key, f"{cert_key} holds no certificate in PEM form; write one there")
        if b"ENCRYPTED" in key:
            raise self.refuse(
                key_key,
                f"{key_key} is encrypted, and nobody is there to type its password; write it unencrypted",
            )
        if b"PRIVATE KEY-----" not in key:
            raise self.refuse(key_key, f"{key_key} holds no private key in PEM form; write one there")
        with _as_file(cert) as cert_path, _as_file(key) as key_path:
            try:
                # An empty password, because without one OpenSSL would ask at the terminal.
                context.load_cert_chain(cert_path, key_path, password="")
            except ssl.SSLError as error:
                if error.reason == "KEY_VALUES_MISMATCH":
                    raise self.refuse(
                        key_key,
                        f"{key_key} is not the key of {cert_key}; give the two that were made together",
                    ) from None
                raise self.refuse(
                    cert_key,
                    f"{cert_key} and {key_key} cannot be used ({_reason(error)}); check both with openssl",
                ) from None
        self.certificate_ends = _chain_ends(cert)

    def _client_certificates(self, context: ssl.SSLContext) -> None:
        wanted = self.said.client_auth_type
        ca_key = "client_ca" if self.said.client_ca else "client_ca_file"
        has_ca = bool(self.said.client_ca or self.said.client_ca_file)
        if wanted == "NoClientCert":
            if has_ca:
                raise self.refuse(
                    ca_key,
                    f"{ca_key} has no effect without client_auth_type; "
                    "write client_auth_type: RequireAndVerifyClientCert",
                )
            return
        if wanted not in ("VerifyClientCertIfGiven", "RequireAndVerifyClientCert"):
            raise self.refuse(
                "client_auth_type",
                f"{wanted} takes certificates that nobody has verified, which Python's TLS cannot; "
                "write RequireAndVerifyClientCert",
            )
        if not has_ca:
            raise self.refuse(
                "client_auth_type",
                f"{wanted} needs to know who issues clients' certificates; add client_ca_file",
            )
        issuers = self._pem("client_ca")
        if b"-----BEGIN CERTIFICATE-----" not in issuers:
            raise self.refuse(ca_key, f"{ca_key} holds no certificate in PEM form; write one there")
        try:
            context.load_verify_locations(cadata=issuers.decode("ascii", "ignore"))
        except ssl.SSLError as error:
            raise self.refuse(
                ca_key, f"{ca_key} cannot be used ({_reason(error)}); check it with openssl"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED if wanted.startswith("Require") else ssl.CERT_OPTIONAL

    def _pem(self, what: str) -> bytes:
        """The inline text, or what the file holds."""
        if inline := getattr(self.said, what):
            return str(inline).encode()
        key = f"{what}_file"
        path = self.folder / getattr(self.said, key)
        self.paths.append(path)
        try:
            with open_regular(path) as file:
                content = file.read(MAX_PEM_BYTES + 1)
        except NotARegularFile:
            raise self.refuse(key, f"{path} is not a regular file; name one in PEM form") from None
        except OSError as error:
            raise self.refuse(
                key, f"{path} cannot be read ({error.strerror}); check the path and its permissions"
            ) from None
        if len(content) > MAX_PEM_BYTES:
            raise self.refuse(key, f"{path} is larger than 1 MiB; name a file in PEM form")
        return content


def _chain_ends(pem: bytes) -> float | None:
    """When the first certificate of a chain ends; None where its encoding is not understood.

    Python's ssl shows the dates of a peer's certificate, but not those of one's own.
    """
    ends = []
    for block in re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL):
        try:
            ends.append(_not_after(ssl.PEM_cert_to_DER_cert(block.decode("ascii"))))
        except (ValueError, IndexError):
            continue
    return min(ends, default=None)


def _not_after(der: bytes) -> float:
    """The end of a certificate (RFC 5280, 4.1). Raises ValueError or IndexError for what is none."""

    def element(at: int) -> tuple[int, int, int]:
        """Tag, start and end of what the element at this place holds."""
        length, start = der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        return der[at], start, start + length

    _, certificate, _ = element(0)
    tag, at, _ = element(certificate)
    if der[at] == 0xA0:  # the version
        at = element(at)[2]
    for _ in ("serial number", "signature", "issuer"):
        at = element(at)[2]
    _, not_before, _ = element(at)
    tag, start, end = element(element(not_before)[2])
    text = der[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime: years of 1950 to 2049
        text = ("19" if text >= "50" else "20") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _reason(error: ssl.SSLError) -> str:
    """What OpenSSL says, without the place in Python's source where it was said."""
    said = error.reason or re.sub(r"^\[[^\]]*\] |\s*\(_ssl\.c:.*", "", error.strerror or "unreadable")
    return said.lower().replace("_", " ")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path of the content, for OpenSSL, which loads keys from files only. It never reaches a disk."""
    descriptor = os.memfd_create("brimline-pem", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


# --- the rest ---

# Those that exporter-toolkit allows, with the values of those that have few.
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
# The last characters of the salt and of the digest hold fewer than six bits each; bcrypt takes no others.
_HASH = re.compile(r"\$2[abxy]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]")


def _headers(said: Mapping[str, str], source: Source) -> dict[str, str]:
    for name, value in said.items():
        place: Place = ("http_server_config", "headers", name)
        if name not in _HEADERS:
            raise source.error(
                place, f"the header {name[:60]!r} cannot be set; known: {', '.join(sorted(_HEADERS))}"
            )
        allowed = _HEADERS[name]
        if value and allowed and value not in allowed:
            raise source.error(place, f"{name} cannot be {value[:60]!r}; write {' or '.join(allowed)}")
        if not value.isprintable() or not value.isascii():
            raise source.error(place, f"{name} holds a line break or the like; use printable characters")
    return dict(said)


def _users(said: Mapping[str, str] | None, source: Source) -> dict[str, bytes]:
    if not said:
        if source.has("basic_auth_users"):
            raise source.error(
                ("basic_auth_users",),
                "basic_auth_users names nobody, which would let everybody in; add one, or remove the key",
            )
        return {}
    for name, hashed in said.items():
        place: Place = ("basic_auth_users", name)
        if not name or ":" in name or not name.isprintable():
            raise source.error(
                place, f"a user cannot be called {name[:60]!r}; use printable characters other than a colon"
            )
        match = _HASH.fullmatch(hashed)
        if match is None:
            raise source.error(
                place,
                f"what stands for {name[:60]!r} is no bcrypt hash of a password; "
                "make one with `htpasswd -nBC 10 \"\" | tr -d ':\\n'`",
            )
        if not 4 <= int(match.group(1)) <= MAX_COST:
            raise source.error(
                place,
                f"the hash for {name[:60]!r} has the cost {int(match.group(1))}, and each new password would "
                f"take seconds; make one of cost 10 to {MAX_COST}",
            )
    return {name: hashed.encode() for name, hashed in said.items()}


def _rate_limit(said: RateLimit | None, source: Source) -> tuple[float | None, int]:
    if said is None:
        return None, 0
    place: Place = ("rate_limit", "interval")
    if isinstance(said.interval, int):
        if said.interval != 0:
            raise source.error(
                place, f"{dotted(place)}: {said.interval} has no unit; write a duration such as 100ms, or 0"
            )
        seconds = 0.0
    else:
        try:
            seconds = units.parse_duration(said.interval)
        except ValueError as error:
            raise source.error(place, f"{dotted(place)}: {error}") from None
    if seconds == 0:
        return None, 0
    if said.burst < 1:
        raise source.error(
            ("rate_limit", "burst"), f"a burst of {said.burst} lets no request pass; write at least 1"
        )
    return seconds, said.burst


def certificate_names(certificate: Mapping[str, Any]) -> frozenset[str]:
    """The names in a certificate as getpeercert() gives it: of hosts, addresses, mail addresses and URIs."""
    import ipaddress

    names = set()
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "IP Address":
            # OpenSSL writes 2001:DB8:0:0:0:0:0:1, people write 2001:db8::1.
            names.add(str(ipaddress.ip_address(value.strip())))
        elif kind in ("DNS", "email", "URI"):
            names.add(value)
    return frozenset(names)
