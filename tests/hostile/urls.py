"""The 22 forms of a URL that lead to where only this machine may go, or elsewhere than they seem to."""

# `127.0.0.1` is whoever listens at PORT; every host but the last is written with it.
HOSTILE_URLS = (
    "http://127.0.0.1:PORT/",
    "http://localhost:PORT/",
    "http://[::1]:PORT/",
    "http://0.0.0.0:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f.1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://127.1:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://169.254.169.254:PORT/",
    "http://10.0.0.1:PORT/",
    "http://100.64.0.1:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[fd00::1]:PORT/",
    "http://[fe80::1%25lo]:PORT/",
    "http://user:pw@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT#@example.com/",
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:PORT/",
    "file:///etc/passwd",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/",
)
