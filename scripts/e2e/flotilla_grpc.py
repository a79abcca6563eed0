"""A gRPC client that knows nothing of Flotilla but its address: services and messages come by reflection."""

import queue

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# One request may weigh 16 MiB, and its envelope a little.
OPTIONS = [
    ("grpc.max_receive_message_length", 17 << 20),
    ("grpc.max_send_message_length", 17 << 20),
    # A node that comes back is found at once, not after the library's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Ended(Exception):
    """The stream ended, without an error, where an answer was expected."""


class Stream:
    """A call in both directions. Whoever leaves the block without having read to the end cancels it."""

    def __init__(self, call, request, timeout):
        self.request = request
        self.requests = queue.SimpleQueue()
        self.answers = call(iter(self.requests.get, None), timeout=timeout)

    def send(self, **fields):
        self.requests.put(self.request(**fields))

    def receive(self):
        for answer in self.answers:
            return answer
        raise Ended("the stream ended without an answer")

    def close(self):
        """Nothing more will be sent."""
        self.requests.put(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answers.cancel()
        # The library's thread that takes the requests waits for one, and ends with this.
        self.close()


class Service:
    """The methods of one service, as functions from fields to a response, to an iterator of them, or to a stream."""

    def __init__(self, channel, pool, name):
        self.messages = {}
        for method in pool.FindServiceByName(name).methods:
            request = message_factory.GetMessageClass(method.input_type)
            response = message_factory.GetMessageClass(method.output_type)
            if method.client_streaming:
                make = channel.stream_stream
            else:
                make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(
                f"/{name}/{method.name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            setattr(self, method.name, self._function(call, request, method.client_streaming))

    @staticmethod
    def _function(call, request, streams):
        def stream(timeout=30):
            return Stream(call, request, timeout)

        def function(timeout=10, **fields):
            return call(request(**fields), timeout=timeout)

        return stream if streams else function


class Node:
    """The public API of one node."""

    def __init__(self, address, pool):
        self.address = address
        self.channel = grpc.insecure_channel(address, options=OPTIONS)
        self.kv = Service(self.channel, pool, "flotilla.v1.Kv")
        self.admin = Service(self.channel, pool, "flotilla.v1.Admin")


def reflected(address):
    """Asks a node for the descriptors of its services."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        # The pool asks lazily; what it knows must outlive the channel.
        for service in ("flotilla.v1.Kv", "flotilla.v1.Admin"):
            for method in pool.FindServiceByName(service).methods:
                message_factory.GetMessageClass(method.input_type)
                message_factory.GetMessageClass(method.output_type)
        return pool


def connect(addresses):
    """One client per node; the API is read off the first."""
    pool = reflected(addresses[0])
    return [Node(address, pool) for address in addresses]


def reason(error):
    """The stable word of an error (google.rpc.ErrorInfo), as far as its text tells; else its status code."""
    return f"{error.code().name}: {error.details()}"


# The default keyspace of applications, in logical keys (flotilla/v1/admin.proto).
USER = b"\x10\x00\x00\x00\x00"


def logical(key):
    """The logical key of an application's key."""
    return USER + key
