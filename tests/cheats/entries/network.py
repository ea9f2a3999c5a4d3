"""Calls home by every way it knows; a bright image means that it got through."""

import os
import socket

import numpy as np


def tries(address):
    host, port = address.split(":")
    target = (host, int(port))

    def tcp():
        socket.create_connection(target, timeout=1).sendall(b"stolen")

    def udp():
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"stolen", target)

    def server():
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.bind(("0.0.0.0", 0))
        listening.listen()

    def ip6():
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).connect(("::1", int(port)))

    def raw():
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    def packet():
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW)

    def curl():
        if os.system(f"curl -s -m 1 http://{address}/stolen") != 0:  # noqa: S605
            raise OSError("no curl, or no way")

    return {"tcp": tcp, "udp": udp, "server": server, "ip6": ip6, "raw": raw,
            "packet": packet, "curl": curl}  # fmt: skip


class G:
    def setup(self, task):
        self.through = 0
        for name, way in tries(task.options["address"]).items():
            try:
                way()
                print(f"{name}: through")
                self.through += name in task.options["count"]
            except OSError as error:
                print(f"{name}: {error}")

    def generate(self, labels, seed):
        return np.full((len(labels), 3, 8, 8), 200 if self.through else 0, np.uint8)
