"""HTTP as the environment wants it: proxies, certificates, and what never goes anywhere but to the endpoint."""

import socket
import ssl
import subprocess
import threading

import pytest
from chat_server import ChatServer, answer, status
from http_proxy import Proxy, certificate

from atlas_ray.engines.chat_endpoint import ChatEndpoint
from atlas_ray.engines.http_transport import HttpClient, NoResponseError
from atlas_ray.errors import EndpointError, InputError

HOST = "models.example"
KEY = "sk-secret-0123456789"
TALK = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    made = ChatServer()
    yield made
    made.kill()


@pytest.fixture
def proxy(server):
    made = Proxy(server.server_address)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"), HOST)


@pytest.fixture
def secure(server, certified):
    """The server speaks TLS with a certificate that nobody knows."""
    server.socket = certified[1].wrap_socket(server.socket, server_side=True)
    return server


def refuse_all(monkeypatch):
    """No connection is made from now on; the addresses that were to be reached."""
    asked = []

    def refuse(address, *_, **__):
        asked.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return asked


@pytest.fixture
def dialled(monkeypatch):
    return refuse_all(monkeypatch)


def ask(url, **options):
    endpoint = ChatEndpoint(url, "m", retries=0, timeout=10, **options)
    try:
        return endpoint.complete([TALK], max_tokens=5)[0].text
    finally:
        endpoint.close()


def test_plain_http_goes_through_the_proxy_of_the_environment(server, proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@{proxy.address}")
    assert ask(f"http://{HOST}/v1") == "hi"
    assert proxy.requests == [("POST", f"http://{HOST}/v1/chat/completions", "Basic bWU6c2VjcmV0")]
    monkeypatch.setenv("NO_PROXY", "other.example")
    assert ask(f"http://{HOST}/v1") == "hi"
    assert len(proxy.requests) == 2
    monkeypatch.setenv("NO_PROXY", f".other.example,{HOST}")
    dialled = refuse_all(monkeypatch)
    with pytest.raises(EndpointError):
        ask(f"http://{HOST}/v1")
    assert dialled == [(HOST, 80)]


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_https_goes_through_a_tunnel_that_sees_no_key(secure, proxy, monkeypatch, certified, variable):
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(EndpointError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(f"https://{HOST}/v1")
    assert secure.requests == []
    monkeypatch.setenv(variable, str(certified[0]))
    assert ask(f"https://{HOST}/v1") == "hi"
    assert {r[:2] for r in proxy.requests} == {("CONNECT", f"{HOST}:443")}
    assert secure.requests[0][2] == f"Bearer {KEY}"


def test_a_folder_of_certificates(secure, monkeypatch, certified, tmp_path):
    done = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", certified[0]], capture_output=True, text=True, check=True
    )
    (tmp_path / f"{done.stdout.strip()}.0").write_bytes(certified[0].read_bytes())
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert ask(secure.url.replace("http:", "https:")) == "hi"


def test_a_certificate_nobody_knows_is_not_asked_again(secure):
    client = HttpClient(secure.url.replace("http:", "https:"), "/x")
    with pytest.raises(NoResponseError, match="self-signed certificate") as caught:
        client.post(b"{}", {}, 10)
    assert not caught.value.retryable
    assert secure.requests == []


def test_a_bundle_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match="REQUESTS_CA_BUNDLE"):
        HttpClient("https://a.example", "/x")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_is_not_asked_for_this_machine(server, monkeypatch, host):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ask(server.url.replace("127.0.0.1", host)) == "hi"


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://10.1.2.3", False),
        ("https://10.1.2.3", True),
        ("http://far.example", True),
        ("https://127.0.0.1", False),
        ("https://[::1]", False),
    ],
)
def test_a_key_that_may_travel_unencrypted_meets_no_proxy(dialled, monkeypatch, url, proxied):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    with pytest.raises(NoResponseError, match="ConnectionRefused"):
        HttpClient(url, "/x").post(b"{}", {}, 10)
    assert (dialled == [("proxy.example", 3128)]) == proxied
    assert len(dialled) == 1


@pytest.mark.parametrize("bad", ["ftp://me:secret@proxy", "http://me:secret@proxy:x"])
def test_a_proxy_that_is_none_is_refused_without_its_password(monkeypatch, bad):
    monkeypatch.setenv("HTTP_PROXY", bad)
    with pytest.raises(InputError, match="proxy") as caught:
        HttpClient("http://far.example", "/x")
    error = caught.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__


def test_a_key_does_not_follow_a_redirect(server, monkeypatch):
    other = ChatServer()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults = [status(307, b"", [("Location", f"{other.url}/chat/completions")])]
    with pytest.raises(EndpointError, match="redirects"):
        ask(server.url)
    assert other.requests == []
    other.kill()


def test_no_cookie_is_kept_and_nothing_comes_compressed(server):
    endpoint = ChatEndpoint(server.url, "m")
    server.faults = [status(200, answer("a"), [("Set-Cookie", "session=1; Path=/")])]
    assert [endpoint.complete([TALK], max_tokens=5)[0].text for _ in range(2)] == ["a", "hi"]
    assert [h.get("Cookie") for h in server.headers] == [None, None]
    assert {h["Accept-Encoding"] for h in server.headers} == {"identity"}
    endpoint.close()


def test_a_proxy_that_hangs_ends_at_the_deadline(monkeypatch):
    silent = ThreadedSilence()
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent.port}")
    with pytest.raises(NoResponseError, match="within 0.2 s"):
        HttpClient(f"https://{HOST}", "/x").post(b"{}", {}, 0.2)
    silent.close()


class ThreadedSilence:
    """Sends a byte of a proxy's headers now and then, for ever."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.over = self.listener.getsockname()[1], threading.Event()
        threading.Thread(target=self.trickle, daemon=True).start()

    def trickle(self):
        line, _ = self.listener.accept()
        with line:
            try:
                line.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not self.over.wait(0.02):
                    line.sendall(b"x")
            except OSError:
                pass

    def close(self):
        self.over.set()
        self.listener.close()


def test_the_context_of_plain_http_trusts_nobody():
    client = HttpClient("http://far.example", "/x")
    pool = client._client._transport._pool
    assert pool._ssl_context.verify_mode == ssl.CERT_REQUIRED
    assert pool._ssl_context.get_ca_certs() == []
