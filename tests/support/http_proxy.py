"""A proxy on loopback that takes every host for one server on this machine, and certificates of a test's own."""

import contextlib
import ipaddress
import select
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self):
        self.note()
        with socket.create_connection(self.server.target) as far:
            self.send_response(200)
            self.end_headers()
            while True:
                ready, _, _ = select.select([self.connection, far], [], [], 10)
                for near in ready:
                    data = near.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    (far if near is self.connection else self.connection).sendall(data)
                if not ready:
                    return

    def do_POST(self):
        self.note()
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        line = HTTPConnection(*self.server.target, timeout=10)
        kept = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
        line.request("POST", parts.path, body, kept)
        answer = line.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        line.close()

    def note(self):
        self.server.requests.append((self.command, self.path, self.headers.get("Proxy-Authorization")))

    def log_message(self, *_):
        pass


class Proxy(ThreadingHTTPServer):
    """``requests``: verb, target and credentials of each request, in the order they came."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.requests = target, []
        self.address = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, *_):
        pass

    def kill(self):
        with contextlib.suppress(OSError):
            self.shutdown()
            self.server_close()


def certificate(folder, name):
    """A self-signed certificate for a name and 127.0.0.1: its file, and a context for a server that holds it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "public.pem", folder / "private.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context
