"""A delta xDS server by grpc and protobuf's own Python, so that the ztunnel meets a control plane of
another house. Commands are JSON lines on stdin, events JSON lines on stdout:

  {"set": {"<type url>": {"<name>": "<hex>"}}, "remove": {"<type url>": ["<name>"]}}   push to all
  {"refuse": true|false}                                                   end streams, refuse new ones
"""

import concurrent.futures
import json
import queue
import sys
import threading

import grpc

sys.path.insert(0, sys.argv[1])  # where protoc put its output
from envoy.service.discovery.v3 import discovery_pb2  # noqa: E402

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
lock = threading.Lock()
state = {}       # type -> name -> (version, bytes)
streams = []     # queues
refuse = False


def say(**event):
    with lock:
        print(json.dumps(event), flush=True)


def response(type_url, names, removed, nonce):
    out = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce)
    for name in names:
        version, body = state[type_url][name]
        r = out.resources.add(name=name, version=version)
        r.resource.type_url, r.resource.value = type_url, body
    out.removed_resources.extend(removed)
    return out


def serve(requests, context):
    if refuse:
        context.abort(grpc.StatusCode.UNAVAILABLE, "away")
    out = queue.Queue()
    streams.append(out)
    seen = set()

    def read():
        try:
            for r in requests:
                if r.HasField("error_detail"):
                    say(event="nack", type=r.type_url, message=r.error_detail.message)
                elif r.response_nonce:
                    say(event="ack", type=r.type_url, nonce=r.response_nonce)
                if r.type_url not in seen:
                    seen.add(r.type_url)
                    known = dict(r.initial_resource_versions)
                    say(event="subscribe", type=r.type_url, known=sorted(known), node=r.node.id)
                    mine = state.get(r.type_url, {})
                    fresh = [n for n, (v, _) in mine.items() if known.get(n) != v]
                    gone = [n for n in known if n not in mine]
                    out.put((r.type_url, fresh, gone))
        except grpc.RpcError:
            pass
        out.put(None)

    threading.Thread(target=read, daemon=True).start()
    n = 0
    while (item := out.get()) is not None:
        type_url, names, removed = item
        if type_url is not None and type_url not in seen:
            continue
        if type_url is None:
            break
        n += 1
        yield response(type_url, names, removed, str(n))
    streams.remove(out)


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(
            serve, request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString)


def main():
    global refuse
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:15010")
    server.start()
    say(event="listening", port=port)
    version = 0
    for line in sys.stdin:
        command = json.loads(line)
        version += 1
        if "refuse" in command:
            refuse = command["refuse"]
            for out in list(streams):
                out.put((None, [], []))
        for type_url in set(command.get("set", {})) | set(command.get("remove", {})):
            mine = state.setdefault(type_url, {})
            changed = command.get("set", {}).get(type_url, {})
            for name, body in changed.items():
                mine[name] = (str(version), bytes.fromhex(body))
            removed = command.get("remove", {}).get(type_url, [])
            for name in removed:
                mine.pop(name, None)
            for out in list(streams):
                out.put((type_url, list(changed), removed))
        say(event="done")
    server.stop(0)


main()
