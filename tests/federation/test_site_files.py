"""What people of a server and of a site write down, and the keys that they are given."""

import contextlib
import datetime
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from matu.cli import run_command
from matu.config import RunConfig, TasksConfig
from matu.errors import ConfigError
from matu.federation.flower import join
from matu.federation.flower.certificates import check_server, greet, make_certificates
from matu.federation.flower.orders import FlowerError
from matu.federation.server_file import read_server
from matu.federation.site_file import SiteFile, read_site
from matu.roots import Roots
from matu.serve import number_of

SERVER = {"server": {"min_sites": 1}, "sites": {"north": ["flowers", "birds"]}, "federation": {"rounds": 3}}
SITE = {"name": "north", "server": "fl.example.org:8000", "tasks": {"tasks": ["./flowers", "demo:digits"]}}


def written(path: Path, table: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(table))
    return path


def test_a_servers_file_is_a_run_and_who_may_take_part(tmp_path: Path) -> None:
    found = read_server(written(tmp_path / "server.toml", SERVER))
    assert found.config.federation.rounds == 3
    assert found.sites == {"north": ("flowers", "birds")}
    assert found.listening.address == "127.0.0.1:8000"
    assert found.certificates == tmp_path / "certs"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sites": {}}, "nobody is admitted"),
        ({"sites": {"north": []}}, "names of its tasks"),
        ({"sites": {"north": "flowers"}}, "names of its tasks"),
        ({"sites": ["north"]}, "expected a section"),
        ({"server": {"min_sites": 2}}, "1 admitted, min_sites is 2"),
        ({"server": {"min_sites": 0}}, "1 or more"),
        ({"server": {"address": "8000"}}, "expected host:port"),
        ({"server": {"address": "here:70000"}}, "expected host:port"),
        ({"server": {"port": 1}}, "unknown 'port'; known are address"),
        ({"server": {"min_sites": "two"}}, "min_sites: 'two'; expected a whole number"),
        ({"server": {"deadline_s": -1}}, "0 \\(none\\) or more"),
        ({"federation": {"rounds": 0}}, "rounds 0"),
        ({"federations": {}}, "unknown 'federations'"),
    ],
)
def test_a_servers_file_that_cannot_work_says_why(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_server(written(tmp_path / "server.toml", SERVER | change))


def test_paths_of_a_sites_file_are_from_its_folder(tmp_path: Path) -> None:
    more = {"certificate": "ca.crt", "key": "/keys/north.key", "folder": "kept", "models_root": "models"}
    (tmp_path / "models").mkdir()
    found = read_site(written(tmp_path / "north.toml", SITE | more))
    assert found.config.tasks.tasks == (str(tmp_path / "flowers"), "demo:digits")
    assert found.certificate == tmp_path / "ca.crt"
    assert found.key == Path("/keys/north.key")
    assert found.folder == tmp_path / "kept"
    assert found.roots.models == tmp_path / "models"
    assert found.agent().name == "north"


def test_tasks_by_path_are_beside_the_sites_file(tmp_path: Path) -> None:
    tasks = {"tasks": ["flowers/small", "../birds", "/data/cats", "bare", "hub:owner/pets"]}
    found = read_site(written(tmp_path / "north.toml", SITE | {"tasks": tasks})).config.tasks.tasks
    assert found == (f"{tmp_path}/flowers/small", f"{tmp_path}/../birds", "/data/cats", "bare", "hub:owner/pets")


def test_what_a_sites_file_leaves_out_is_as_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATA", "MODELS", "CACHE"):
        monkeypatch.setenv(f"MATU_{name}", str(tmp_path / name))
    for name in ("mine", "MODELS"):
        (tmp_path / name).mkdir()
    found = read_site(written(tmp_path / "north.toml", SITE | {"data_root": "mine"})).roots
    assert found == Roots(tmp_path / "mine", tmp_path / "MODELS", tmp_path / "CACHE")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": None}, "name missing"),
        ({"tasks": None}, "tasks missing"),
        ({"server": "fl.example.org"}, "expected host:port"),
        ({"name": "a\tb"}, "printable"),
        ({"key": 5}, "key = 5, expected text"),
        ({"training": {}}, "unknown training; known are name"),
        ({"tasks": {"task": []}}, "unknown 'task'"),
        ({"tasks": {"max_train": 5}}, "names none"),
        ({"tasks": {"tasks": []}}, "names none"),
        ({"models_root": "gone"}, r"north.toml: --models-root: .*gone is no folder"),
        ({"server": "127.0.0.1:99999"}, "expected host:port"),
    ],
)
def test_a_sites_file_that_cannot_work_says_why(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    table = {name: value for name, value in (SITE | change).items() if value is not None}
    with pytest.raises(ConfigError, match=said):
        read_site(written(tmp_path / "north.toml", table))


def test_keys_are_what_tls_and_flower_read(tmp_path: Path) -> None:
    made = make_certificates(tmp_path, ["fl.example.org", "192.0.2.7"], ["north"], 30)
    assert {path.name for path in made} == {
        "ca.key", "ca.crt", "server.key", "server.pem", "north.key", "north.pub",
    }  # fmt: skip
    for name in ("ca.key", "server.key", "north.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1"]
    private = load_ssh_private_key((tmp_path / "north.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "north.pub").read_bytes())
    assert private.public_key() == public


def test_a_public_key_that_was_never_written_is_made_from_the_private_one(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["fl.example.org"], ["north"], 30)
    public, private = (tmp_path / "north.pub").read_bytes(), (tmp_path / "north.key").read_bytes()
    (tmp_path / "north.pub").unlink()
    assert make_certificates(tmp_path, ["fl.example.org"], ["north"], 30) == [tmp_path / "north.pub"]
    assert ((tmp_path / "north.pub").read_bytes(), (tmp_path / "north.key").read_bytes()) == (public, private)
    assert not list(tmp_path.glob(".*")), "no part of a file is left"
    (tmp_path / "north.key").unlink()  # gone to the site: no other is made
    assert not make_certificates(tmp_path, ["fl.example.org"], ["north"], 30)
    (tmp_path / "north.pub").unlink()
    (tmp_path / "north.key").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"north.key: no private key that can be read"):
        make_certificates(tmp_path, ["fl.example.org"], ["north"], 30)


def shake_hands(folder: Path, authority: Path, host: str) -> None:
    """A TLS handshake in memory, strict as to what certificates may say; ssl.SSLError if it fails."""
    client = ssl.create_default_context(cafile=str(authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=host), server.wrap_bio(there, back, server_side=True)]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert ends[0].version() == "TLSv1.3"


def test_openssl_finds_the_servers_certificate_right(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["fl.example.org"], [], 30)
    shake_hands(tmp_path, tmp_path / "ca.crt", "fl.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(tmp_path, tmp_path / "ca.crt", "evil.example.org")


def an_expired_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's certificate made ten days ago for two days, of an authority that holds."""
    make_certificates(folder, ["127.0.0.1"], [], 30)
    (folder / "server.pem").unlink()

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.now(tz) - datetime.timedelta(days=10)

    with monkeypatch.context() as past:
        past.setattr("matu.federation.flower.certificates.datetime", SimpleNamespace(
            datetime=Then, timedelta=datetime.timedelta, UTC=datetime.UTC
        ))  # fmt: skip
        make_certificates(folder, ["127.0.0.1"], [], 2)


def test_a_server_with_a_certificate_that_does_not_hold_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificates(tmp_path / "good", ["127.0.0.1"], [], 30)
    check_server(tmp_path / "good")
    an_expired_server(tmp_path / "late", monkeypatch)
    with pytest.raises(ConfigError, match=r"server\.pem: holds from .* and it is"):
        check_server(tmp_path / "late")
    for name, said in (("ca.crt", "not signed by"), ("server.key", "is not the key of")):
        make_certificates(tmp_path / name, ["127.0.0.1"], [], 30)
        (tmp_path / name / name).write_bytes((tmp_path / "good" / name).read_bytes())
        with pytest.raises(ConfigError, match=said):
            check_server(tmp_path / name)
    (tmp_path / "good" / "server.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="no certificate that can be read"):
        check_server(tmp_path / "good")


@contextlib.contextmanager
def listening(folder: Path | None) -> Iterator[str]:
    """Somebody on a port, with a folder's certificate, or without TLS; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def answer() -> None:
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                plain.settimeout(30)
                with plain:
                    if folder is None:
                        plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        return
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(folder / "server.pem", folder / "server.key")
                    context.wrap_socket(plain, server_side=True).close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(60)


def test_a_site_knows_its_server_and_says_who_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, other, late = tmp_path / "good", tmp_path / "other", tmp_path / "late"
    make_certificates(good, ["127.0.0.1"], [], 30)
    make_certificates(other, ["127.0.0.1"], [], 30)
    an_expired_server(late, monkeypatch)
    with listening(good) as address:
        assert greet(address, good / "ca.crt") is None
    for folder, authority, said in (
        (good, other, "refused: unable to get local issuer"), (late, late, "refused: certificate has expired"),
        (None, good, "does not speak TLS"),
    ):  # fmt: skip
        with listening(folder) as address, pytest.raises(ConfigError, match=said):
            greet(address, authority / "ca.crt")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert "refused" in str(greet(f"127.0.0.1:{port}", good / "ca.crt"))


def test_nothing_is_overwritten_and_sites_are_added(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["a"], ["north"], 30)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made = make_certificates(tmp_path, ["a"], ["north", "south"], 30)
    assert {path.name for path in made} == {"south.key", "south.pub"}
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    (tmp_path / "server.pem").unlink()
    made = make_certificates(tmp_path, ["b"], [], 30)
    assert {path.name for path in made} == {"server.pem", "server.key"}
    assert (tmp_path / "ca.crt").read_bytes() == before["ca.crt"]


@pytest.mark.parametrize(
    ("hosts", "sites", "days"),
    [
        ([], ["a"], 1), (["x"], ["a", "a"], 1), (["x"], ["../a"], 1), (["x"], ["ca"], 1), (["x"], [""], 1),
        (["x"], [], 0), (["x"], [".a"], 1), (["x"], ["server"], 1),
    ],
)  # fmt: skip
def test_names_that_are_no_files_make_no_keys(tmp_path: Path, hosts: list[str], sites: list[str], days: int) -> None:
    with pytest.raises(ConfigError):
        make_certificates(tmp_path / "certs", hosts, sites, days)
    assert not (tmp_path / "certs").exists()


def test_half_an_authority_is_not_completed(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["a"], [], 30)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ConfigError, match="only one of"):
        make_certificates(tmp_path, ["a"], ["north"], 30)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["server", "--config", "server.toml", "--out", "run"], "north.pub not there; matu certs --out"),
        (["server", "--config", "open.toml", "--out", "run", "--insecure"], "only on 127.0.0.1"),
        (["server", "--config", "nothing.toml", "--out", "run"], "no such configuration file"),
        (["site", "--config", "north.toml"], "certificate is missing; the people of the server send it"),
        (["site", "--config", "north.toml", "--insecure"], "only on 127.0.0.1"),
        (["certs"], "at least one host that sites connect to"),
    ],
)
def test_commands_say_what_is_missing_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "server.toml", SERVER)
    written(tmp_path / "open.toml", SERVER | {"server": {"address": "0.0.0.0:8000", "min_sites": 1}})
    written(tmp_path / "north.toml", SITE)
    assert run_command(words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no key", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
)
def test_a_key_that_is_none_is_told_before_anybody_is_asked(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_certificates(tmp_path / "certs", ["127.0.0.1"], ["north"], 2)
    (tmp_path / "north.key").write_bytes(content)
    written(tmp_path / "north.toml", SITE | {"key": "north.key", "certificate": "certs/ca.crt"})
    assert run_command(["site", "--config", "north.toml"]) == 2
    assert "north.key: no private key that can be read" in capsys.readouterr().err
    assert not (tmp_path / "north").exists()


def test_a_finished_run_is_not_taken_for_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    number_of(read_server(written(tmp_path / "server.toml", SERVER)), tmp_path)
    (tmp_path / "result.json").write_text('{"accuracy": {}}')
    command = ["server", "--config", "server.toml", "--out", str(tmp_path)]
    assert run_command(command) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out
    (tmp_path / "flower").mkdir(exist_ok=True)
    (tmp_path / "flower/state.db").write_bytes(b"what sites sent, left by a kill at the very end")
    assert run_command(command) == 0
    assert not (tmp_path / "flower/state.db").exists()
    capsys.readouterr()
    written(tmp_path / "server.toml", SERVER | {"federation": {"rounds": 4}})
    assert run_command(command) == 2
    assert "was begun with another configuration (rounds 3 -> 4); restore it" in capsys.readouterr().err
    written(tmp_path / "server.toml", SERVER | {"tasks": {"image_size": 64}})
    assert run_command(command) == 2
    assert "was begun with another configuration (an option of [tasks] or [federation]);" in capsys.readouterr().err


def test_a_stopped_run_of_another_configuration_is_refused_before_anything_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    number_of(read_server(written(tmp_path / "server.toml", SERVER)), tmp_path / "run")
    written(tmp_path / "server.toml", SERVER | {"wire": {"uplink": "4bit"}})
    assert run_command(["server", "--config", "server.toml", "--out", "run", "--insecure"]) == 2
    assert "(uplink '3bit' -> '4bit')" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_node_that_is_turned_away_late_was_never_let_in(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine Flower takes its time to say so; the site must not try for minutes as if it had been in."""
    node = tmp_path / "supernode"
    node.write_text("#!/bin/sh\nsleep 0.3\necho 'Failed to activate SuperNode. [code: 2004]'\nexit 1\n")
    node.chmod(0o700)
    monkeypatch.setattr(join, "tool", lambda name: str(node))
    monkeypatch.setattr(join, "QUICK_END_S", 0.1)
    config = RunConfig(tasks=TasksConfig(tasks=("left",)))
    roots = Roots(data=tiny_data, models=None, cache=tmp_path / "cache")
    site = SiteFile("north", "127.0.0.1:9", tmp_path / "state", None, tmp_path / "north.key", config, roots)
    said: list[str] = []
    with pytest.raises(FlowerError, match="does not let site 'north' in"):
        join.run_site(tmp_path / "north.toml", site, insecure=True, anywhere=False, tell=said.append)
    assert not [line for line in said if "again in" in line]
