"""The file of --web.config.file: what is read, and how every mistake is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import time
from pathlib import Path

import bcrypt
import pytest

from brimline.errors import ConfigError
from brimline.web_config import certificate_names, load_web_config
from certificates import Authority

FILES = Path(__file__).parent.parent / "web_configs"

PEM = "in PEM form; write one there"
NO_HASH = (
    "what stands for 'alice' is no bcrypt hash of a password; "
    "make one with `htpasswd -nBC 10 \"\" | tr -d ':\\n'`"
)
PERMISSIONS = "check the path and its permissions"
UNVERIFIED = "takes certificates that nobody has verified, which Python's TLS cannot"
NAMES_WANTED = (
    "client_allowed_sans needs a client that shows a certificate; "
    "write client_auth_type: RequireAndVerifyClientCert"
)
SUITES = (
    "TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256, "
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, "
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, "
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
)
TLS_KEYS = (
    "cert, cert_file, cipher_suites, client_allowed_sans, client_auth_type, client_ca, client_ca_file, "
    "curve_preferences, key, key_file, max_version, min_version, prefer_server_cipher_suites"
)
BOTH = "is missing; TLS needs a certificate and its key"

# For each tests/web_configs/bad-*.yaml: what is said behind the file's name.
MISTAKES = {
    # keys
    "unknown-key": (
        "1: unknown key 'tls_config'; did you mean 'tls_server_config'? known: basic_auth_users, "
        "http_server_config, rate_limit, tls_server_config"
    ),
    "unknown-tls-key": (
        f"4: unknown key 'ca_file' in tls_server_config; did you mean 'client_ca_file'? known: {TLS_KEYS}"
    ),
    "unknown-http-key": (
        "2: unknown key 'http3' in http_server_config; did you mean 'http2'? known: headers, http2"
    ),
    "unknown-rate-key": "3: unknown key 'rate' in rate_limit; known: burst, interval",
    "file-is-a-list": "1: the file holds a list; write keys such as `tls_server_config:`",
    "not-yaml": "2: not YAML: expected ',' or '}', but got '<stream end>'; check indentation and quotes",
    # the certificate
    "tls-is-empty": "1: tls_server_config is empty; give cert_file and key_file, or remove it",
    "cert-missing": f"1: cert_file {BOTH}",
    "key-missing": f"1: key_file {BOTH}",
    "cert-path-is-empty": f"2: cert_file {BOTH}",
    "only-client-auth": f"1: cert_file {BOTH}",
    "cert-twice": "3: cert and cert_file both stand here; keep one",
    "key-twice": "3: key and key_file both stand here; keep one",
    "ca-twice": "5: client_ca and client_ca_file both stand here; keep one",
    "cert-not-there": f"2: FOLDER/nowhere.pem cannot be read (No such file or directory); {PERMISSIONS}",
    "key-not-there": f"3: FOLDER/nowhere.key cannot be read (No such file or directory); {PERMISSIONS}",
    "cert-is-a-folder": f"2: FOLDER cannot be read (Is a directory); {PERMISSIONS}",
    "cert-is-a-pipe": "2: FOLDER/pipe is not a regular file; name one in PEM form",
    "cert-is-no-pem": f"2: cert_file holds no certificate {PEM}",
    "key-is-no-pem": f"3: key_file holds no private key {PEM}",
    "cert-is-broken": "2: cert_file and key_file cannot be used (pem lib); check both with openssl",
    "key-is-encrypted": (
        "3: key_file is encrypted, and nobody is there to type its password; write it unencrypted"
    ),
    "key-of-another": "3: key_file is not the key of cert_file; give the two that were made together",
    "key-is-a-number": "3: tls_server_config.key: found a number; write text",
    # certificates of clients
    "ca-not-there": f"5: FOLDER/nowhere.pem cannot be read (No such file or directory); {PERMISSIONS}",
    "ca-without-certificates": f"5: client_ca_file holds no certificate {PEM}",
    "ca-inline-without-certificates": f"5: client_ca holds no certificate {PEM}",
    "ca-without-policy": (
        "4: client_ca_file has no effect without client_auth_type; "
        "write client_auth_type: RequireAndVerifyClientCert"
    ),
    "policy-unknown": (
        "4: unknown client_auth_type 'RequireAndVerify'; did you mean 'RequireAndVerifyClientCert'? known: "
        "NoClientCert, RequestClientCert, "
        "RequireAnyClientCert, RequireClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert"
    ),
    "policy-unverified": f"4: RequireAnyClientCert {UNVERIFIED}; write RequireAndVerifyClientCert",
    "policy-requested-only": f"4: RequestClientCert {UNVERIFIED}; write RequireAndVerifyClientCert",
    "policy-without-ca": (
        "4: RequireAndVerifyClientCert needs to know who issues clients' certificates; add client_ca_file"
    ),
    "sans-without-policy": f"4: {NAMES_WANTED}",
    "sans-of-optional-certificate": f"6: {NAMES_WANTED}",
    "sans-empty": "6: client_allowed_sans is empty, which lets nobody in; name one",
    # versions, ciphers, curves
    "version-broken": "4: TLS11 is broken and not spoken here; write min_version: TLS12 or TLS13",
    "version-unknown": (
        "4: unknown min_version 'TLSv1.2'; did you mean 'TLS12'? known: TLS10, TLS11, TLS12, TLS13"
    ),
    "versions-crossed": "4: min_version is above max_version, which leaves none; write min_version: TLS12",
    "cipher-unknown": f"6: unknown or unsafe cipher suite 'TLS_WITH_LOVE'; known: {SUITES}",
    "cipher-unsafe": f"4: unknown or unsafe cipher suite 'TLS_RSA_WITH_AES_128_CBC_SHA'; known: {SUITES}",
    "ciphers-of-tls13-only": (
        "4: cipher_suites names none of TLS 1.2, which nobody could speak then; "
        "add one, or write min_version: TLS13"
    ),
    "ciphers-is-text": (
        "4: tls_server_config.cipher_suites: found the text 'TLS_AES_128_GCM_SHA256'; write a list"
    ),
    "curve-unknown": "4: unknown curve 'CurveP257'; known: CurveP256, CurveP384, CurveP521, X25519",
    "curves-in-order": (
        "4: Python's TLS can be held to one curve, not to several in an order; "
        "keep one, or remove curve_preferences for OpenSSL's own order"
    ),
    # HTTP
    "http2-is-text": "2: http_server_config.http2: found the text 'off'; write true or false",
    "header-unknown": (
        "3: the header 'X-Powered-By' cannot be set; known: Content-Security-Policy, "
        "Strict-Transport-Security, X-Content-Type-Options, X-Frame-Options, X-XSS-Protection"
    ),
    "header-frame-options": "3: X-Frame-Options cannot be 'DENY'; write deny or sameorigin",
    "header-content-type-options": "3: X-Content-Type-Options cannot be 'sniff'; write nosniff",
    "header-with-line-break": (
        "3: Content-Security-Policy holds a line break or the like; use printable characters"
    ),
    "header-is-a-number": "3: http_server_config.headers.X-XSS-Protection: found the number 0; write text",
    # users
    "users-empty": (
        "1: basic_auth_users names nobody, which would let everybody in; add one, or remove the key"
    ),
    "users-is-a-list": "1: basic_auth_users: found a list; write a mapping of keys to values",
    "user-twice": "3: 'alice' stands twice (first on line 2); remove one",
    "user-plain-password": f"2: {NO_HASH}",
    "user-password-is-a-number": "2: basic_auth_users.alice: found a number; write text",
    "user-other-hash": f"2: {NO_HASH}",
    "user-hash-cut-off": f"2: {NO_HASH}",
    "user-cost-too-high": (
        "2: the hash for 'alice' has the cost 18, and each new password would take seconds; "
        "make one of cost 10 to 16"
    ),
    "user-with-colon": "2: a user cannot be called 'al:ice'; use printable characters other than a colon",
    # rate limit
    "rate-without-burst": "1: a burst of 0 lets no request pass; write at least 1",
    "rate-without-unit": "2: rate_limit.interval: 5 has no unit; write a duration such as 100ms, or 0",
    "rate-in-words": (
        "2: rate_limit.interval: 'often' is not a duration; write it with a unit, such as 250ms, 5s or 1m30s"
    ),
}


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample files, with the certificates that they name."""
    folder = tmp_path_factory.mktemp("web")
    authority = Authority()
    server = authority.issue(["localhost"])
    server.write(folder, "server")
    authority.issue(["localhost"]).write(folder, "other")
    (folder / "ca.pem").write_bytes(authority.certificate)
    (folder / "encrypted.key").write_bytes(server.encrypted_key(b"a password"))
    (folder / "broken.pem").write_bytes(server.certificate.replace(b"M", b"N", 3))
    (folder / "empty.pem").write_text("")
    os.mkfifo(folder / "pipe")
    for path in FILES.glob("*.yaml"):
        shutil.copy(path, folder)
    return folder


def test_every_bad_file_has_its_mistake() -> None:
    assert {path.stem.removeprefix("bad-") for path in FILES.glob("bad-*.yaml")} == set(MISTAKES)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_cure(folder: Path, name: str) -> None:
    path = folder / f"bad-{name}.yaml"

    with pytest.raises(ConfigError) as refused:
        load_web_config(path)

    said = str(refused.value).removeprefix(f"{path}:").replace(str(folder), "FOLDER")
    assert said == MISTAKES[name]
    assert "PLANTED" not in said


@pytest.mark.parametrize("path", sorted(FILES.glob("good-*.yaml")), ids=lambda path: path.stem)
def test_a_good_file_is_read(folder: Path, path: Path) -> None:
    load_web_config(folder / path.name)


def test_everything_that_a_file_says_is_in_force(folder: Path) -> None:
    config = load_web_config(folder / "good-tls-everything.yaml")

    assert config.tls is not None
    assert config.tls.minimum_version is ssl.TLSVersion.TLSv1_2
    assert config.tls.maximum_version is ssl.TLSVersion.TLSv1_3
    assert config.tls.verify_mode is ssl.CERT_REQUIRED
    assert not config.tls.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    old = [suite["name"] for suite in config.tls.get_ciphers() if suite["protocol"] != "TLSv1.3"]
    assert old == ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305"]
    assert config.client_names == frozenset({"prometheus.example", "127.0.0.1"})
    assert config.headers["X-Frame-Options"] == "deny"
    assert set(config.users) == {"alice", "prometheus"}
    assert (config.refill_seconds, config.burst) == (0.1, 20)
    assert config.authenticates
    assert [path.name for path in config.paths] == [
        "good-tls-everything.yaml",
        "server.pem",
        "server.key",
        "ca.pem",
    ]


def test_what_makes_no_difference_is_told(folder: Path) -> None:
    notes = load_web_config(folder / "good-tls-everything.yaml").notes

    assert notes == (
        "cipher_suites: TLS_AES_128_GCM_SHA256 is of TLS 1.3, whose suites are always on",
        "http2: this port speaks HTTP/1.1 only, which every client falls back to",
    )


def test_tls_is_of_1_2_at_least_with_secrecy_of_the_past_unless_told_otherwise(folder: Path) -> None:
    context = load_web_config(folder / "good-tls.yaml").tls

    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert all(
        "ECDHE" in suite["name"] or "DHE" in suite["name"] or suite["protocol"] == "TLSv1.3"
        for suite in context.get_ciphers()
    )
    assert context.verify_mode is ssl.CERT_NONE


def test_a_certificate_given_if_at_all_authenticates_nobody(folder: Path) -> None:
    config = load_web_config(folder / "good-client-certificate-if-given.yaml")

    assert config.tls is not None
    assert config.tls.verify_mode is ssl.CERT_OPTIONAL
    assert not config.authenticates


def test_certificate_and_key_may_stand_in_the_file(tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.issue(["localhost"])
    path = tmp_path / "web.yaml"
    path.write_text(
        "tls_server_config:\n  client_auth_type: RequireAndVerifyClientCert\n"
        f"  cert: |\n{indented(pair.certificate)}  key: |\n{indented(pair.key)}"
        f"  client_ca: |\n{indented(authority.certificate)}"
    )

    config = load_web_config(path)

    assert config.tls is not None
    assert len(config.tls.get_ca_certs()) == 1
    assert config.paths == (path,)
    assert pair.key.decode().splitlines()[1] not in repr(config)


@pytest.mark.parametrize(
    ("days", "said"),
    [(-1.0, "tls_server_config expired on "), (3.0, "tls_server_config ends on "), (30.0, None)],
)
def test_a_certificate_at_its_end_is_told_beforehand(days: float, said: str | None, tmp_path: Path) -> None:
    Authority().issue(["localhost"], days=days).write(tmp_path, "server")
    (tmp_path / "web.yaml").write_text("tls_server_config: {cert_file: server.pem, key_file: server.key}\n")

    config = load_web_config(tmp_path / "web.yaml")

    assert config.certificate_ends == pytest.approx(time.time() + days * 86400, abs=600)
    doubt = config.certificate_doubt(time.time())
    assert (doubt is None) if said is None else (doubt is not None and said in doubt)


def test_a_file_is_described_in_a_line(folder: Path) -> None:
    (folder / "plain.yaml").write_text("{}\n")
    (folder / "tls.yaml").write_text(
        "tls_server_config: {cert_file: server.pem, key_file: server.key, client_ca_file: ca.pem,\n"
        "  client_auth_type: RequireAndVerifyClientCert}\n"
        f"basic_auth_users: {{a: '$2y$10${'a' * 21}e{'a' * 31}'}}\n"
    )

    assert load_web_config(folder / "plain.yaml").describe() == "no TLS, everybody may ask"
    described = load_web_config(folder / "tls.yaml").describe()
    assert described == "TLS 1.2 or newer, 1 user, client certificates required"


def test_a_hash_shows_in_no_representation(folder: Path) -> None:
    assert "$2" not in repr(load_web_config(folder / "good-users.yaml"))


def test_names_of_a_certificate_are_those_that_people_write() -> None:
    certificate = {
        "subjectAltName": (
            ("DNS", "prometheus.example"),
            ("IP Address", "2001:DB8:0:0:0:0:0:1"),
            ("email", "a@b.example"),
            ("URI", "spiffe://cluster/prometheus"),
            ("DirName", "ignored"),
        )
    }

    assert certificate_names(certificate) == {
        "prometheus.example",
        "2001:db8::1",
        "a@b.example",
        "spiffe://cluster/prometheus",
    }


def indented(pem: bytes) -> str:
    return "".join(f"    {line}\n" for line in pem.decode().splitlines())


LETTERS = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def endings_taken(folder: Path, place: int) -> set[str]:
    """The letters that may stand at that place of a hash."""
    good, path = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode(), folder / "web.yaml"
    taken = set()
    for letter in LETTERS:
        path.write_text(f"basic_auth_users: {{alice: {good[:place]}{letter}{good[place + 1 :]}}}\n")
        with contextlib.suppress(ConfigError):
            load_web_config(path)
            taken.add(letter)
    return taken


def test_a_salt_that_bcrypt_does_not_take_is_refused(tmp_path: Path) -> None:
    salt, usable = bcrypt.gensalt(4)[:28], set()
    for letter in LETTERS:
        with contextlib.suppress(ValueError):
            bcrypt.hashpw(b"right", salt + letter.encode())
            usable.add(letter)

    assert endings_taken(tmp_path, 28) == usable


def test_a_digest_that_bcrypt_does_not_write_is_refused(tmp_path: Path) -> None:
    salt = bcrypt.gensalt(4)
    written = {chr(bcrypt.hashpw(b"%d" % number, salt)[59]) for number in range(400)}

    assert endings_taken(tmp_path, 59) == written
