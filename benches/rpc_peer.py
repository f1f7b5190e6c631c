"""A plain MessagePack-RPC server in Python, which rpc_load compares with the others.

    rpc_peer.py PORT PROCESSES

Processes share a listener. Each has a thread for every client, as gunicorn's gthread has. Needs the
package msgpack.
"""

import os
import socket
import sys
import threading

import msgpack

METHODS = {"add": lambda a, b: a + b}


def serve(client):
    """Answers one client's calls to its end."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    unpacker, pack = msgpack.Unpacker(), msgpack.Packer().pack
    while data := client.recv(65536):
        unpacker.feed(data)
        answers = []
        for _, number, method, params in unpacker:
            try:
                answers.append(pack([1, number, None, METHODS[method](*params)]))
            except Exception as error:  # any error is an error answer
                answers.append(pack([1, number, str(error), None]))
        client.sendall(b"".join(answers))
    client.close()


def main():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    alive, keep = os.pipe()  # closed when the first process exits, for any reason
    for _ in range(int(sys.argv[2]) - 1):
        if os.fork() == 0:
            os.close(keep)
            threading.Thread(target=lambda: os.read(alive, 1) or os._exit(0), daemon=True).start()
            break
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


main()
