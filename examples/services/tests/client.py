"""A gRPC client of the greeter: client.py ADDRESS. Ends with 0 if each answer was right.

Prints "streaming" once its stream has begun, and then expects that the server ends it.
"""

import sys

import grpc


def text(value):
    """A message with one string, its first field."""
    data = value.encode()
    return bytes([0x0A, len(data)]) + data


def main():
    channel = grpc.insecure_channel(sys.argv[1])
    greet = channel.unary_unary("/greeter.Greeter/Greet")
    assert greet(text("Ada"), timeout=10) == text("Hello, Ada!")
    try:
        greet(b"", timeout=10)
        raise SystemExit("an empty name was greeted")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error

    stream = channel.unary_stream("/greeter.Greeter/Repeat")(text("Ada") + bytes([0x10, 20]))
    assert next(stream) == text("Hello, Ada!")
    print("streaming", flush=True)
    for reply in stream:
        assert reply == text("Hello, Ada!")
    assert stream.code() == grpc.StatusCode.OK, stream


main()
