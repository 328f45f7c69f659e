#!/usr/bin/env python3
"""The floor: reads a slot as fast as the server sends and does nothing with it.

    bench/bare_reader.py PORT SLOT END_LSN

Unlike pg_recvlogical it reads in large pieces and pauses 2 ms when the socket is empty, which lets the walsender send many
rows with one system call. Loopback and trust only. It says that it lives, and never acknowledges anything.
"""

import os
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from private import lsn  # noqa: E402

PAUSE_SECS = 0.002
ALIVE_SECS = 10
# A status update of position 0: tag, length, 'r', written, flushed, applied, clock, no reply wanted.
ALIVE = b"d" + struct.pack("!i", 38) + b"r" + bytes(33)
KEEPALIVE_BYTES = 23  # 'd', length 22, 'k', wal end (8), clock (8), reply wanted (1)


def main():
    port, slot, end = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    end = lsn(end)
    sock = socket.create_connection(("127.0.0.1", port))
    params = b"user\0postgres\0database\0postgres\0replication\0database\0\0"
    sock.sendall(struct.pack("!ii", len(params) + 8, 196608) + params)
    buf = bytearray(1 << 20)
    until(sock, b"Z\0\0\0\5I")
    query = f"START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names 'huella')".encode() + b"\0"
    sock.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
    sock.settimeout(ALIVE_SECS)
    tail, told = b"", time.monotonic()
    while True:
        if time.monotonic() - told > ALIVE_SECS:
            sock.sendall(ALIVE)
            told = time.monotonic()
        try:
            read = sock.recv_into(buf)
        except TimeoutError:
            continue
        if read == 0:
            raise SystemExit("the server closed the connection")
        tail = (tail + bytes(buf[max(0, read - KEEPALIVE_BYTES):read]))[-KEEPALIVE_BYTES:]
        # Caught up: a keepalive is the last thing there is.
        if tail[:6] == b"d\0\0\0\x16k" and struct.unpack("!Q", tail[6:14])[0] >= end:
            return
        if read < len(buf):
            time.sleep(PAUSE_SECS)


def until(sock, mark):
    """Reads up to the answer that ends with `mark`."""
    held = b""
    while not held.endswith(mark):
        more = sock.recv(65536)
        if not more or held.startswith(b"E"):
            raise SystemExit(f"the server refused: {held!r}")
        held += more


if __name__ == "__main__":
    main()
