"""A delta xDS and CA client made of grpcio and protoc alone: the other side of our server's tests.

usage: python_client.py PROTO_ROOT PORT SCENARIO
Prints one JSON object; exit 0 when the scenario went as it says.
"""
import importlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile

import grpc

proto_root, port, scenario = sys.argv[1], sys.argv[2], sys.argv[3]
generated = tempfile.mkdtemp(prefix="meltemi-py-")
files = ["envoy/service/discovery/v3/discovery.proto", "envoy/config/core/v3/node.proto",
         "google/rpc/status.proto", "istio/v1/auth/ca.proto", "meltemi/node/v1/node.proto"]
subprocess.run(["protoc", "-I", proto_root, "--python_out", generated, *files], check=True)
# google.rpc lives beside google.protobuf, which is a package of its own: extend its path.
import google
google.__path__.append(os.path.join(generated, "google"))
sys.path.insert(0, generated)
discovery = importlib.import_module("envoy.service.discovery.v3.discovery_pb2")
ca = importlib.import_module("istio.v1.auth.ca_pb2")
node = importlib.import_module("meltemi.node.v1.node_pb2")
shutil.rmtree(generated)

ADDRESS = "type.googleapis.com/istio.workload.Address"
channel = grpc.insecure_channel("127.0.0.1:" + port, options=[("grpc.enable_http_proxy", 0)])
auth = (("authorization", "Bearer good-token"),)


class Stream:
    def __init__(self, metadata=auth):
        self.requests = queue.Queue()
        call = channel.stream_stream(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            request_serializer=discovery.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery.DeltaDiscoveryResponse.FromString)
        self.responses = call(iter(self.requests.get, None), metadata=metadata, timeout=60)

    def send(self, node_id=None, **fields):
        request = discovery.DeltaDiscoveryRequest(type_url=ADDRESS, **fields)
        if node_id:
            request.node.id = node_id
        self.requests.put(request)

    def next(self):
        return next(self.responses)


def shown(response):
    return {"resources": {r.name: [r.version, r.resource.value.decode()] for r in response.resources},
            "removed": list(response.removed_resources), "type": response.type_url}


out = {}
if scenario == "sync":
    stream = Stream()
    stream.send(node_id="ztunnel~10.0.0.9~py.ns~cluster.local",
                initial_resource_versions={"same": "1", "stale": "0", "gone": "5"})
    first = stream.next()
    out["first"] = shown(first)
    stream.send(response_nonce=first.nonce)
    print("ready", flush=True)
    second = stream.next()
    out["second"] = shown(second)
    nack = discovery.DeltaDiscoveryRequest(type_url=ADDRESS, response_nonce=second.nonce)
    nack.error_detail.code = 3
    nack.error_detail.message = "later: not understood"
    stream.requests.put(nack)
    third = stream.next()
    out["third"] = shown(third)
    stream.requests.put(None)
elif scenario == "refused":
    for name, metadata, request in [
            ("no_token", (), {"node_id": "x"}),
            ("two_tokens", auth + (("authorization", "Bearer other"),), {"node_id": "x"}),
            ("bad_token", (("authorization", "Bearer nonsense"),), {"node_id": "x"}),
            ("no_node", auth, {})]:
        stream = Stream(metadata)
        stream.send(**request)
        try:
            stream.next()
            out[name] = "accepted"
        except grpc.RpcError as error:
            out[name] = error.code().name
        stream.requests.put(None)
elif scenario == "on_demand":
    stream = Stream()
    stream.send(node_id="ztunnel~10.0.0.9~py.ns~cluster.local", resource_names_subscribe=["*"],
                resource_names_unsubscribe=["*"])

    def ask(name):
        stream.send(resource_names_subscribe=[name])
        response = stream.next()
        stream.send(response_nonce=response.nonce)
        return shown(response)

    out["own_node"] = shown(stream.next())
    out["vip"] = ask("net/10.96.0.1")
    out["unknown"] = ask("net/192.0.2.1")
    print("ready", flush=True)
    out["new_member"] = shown(stream.next())
    stream.requests.put(None)
elif scenario == "forbidden_type":
    stream = Stream()
    stream.requests.put(discovery.DeltaDiscoveryRequest(
        type_url="type.googleapis.com/forbidden", node={"id": "x"}))
    stream.send()
    out["address"] = shown(stream.next())
    stream.requests.put(None)
elif scenario == "unary":
    sign = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate",
                               request_serializer=ca.IstioCertificateRequest.SerializeToString,
                               response_deserializer=ca.IstioCertificateResponse.FromString)
    request = ca.IstioCertificateRequest(csr="CSR", validity_duration=77)
    request.metadata["ImpersonatedIdentity"] = "spiffe://td/ns/a/sa/b"
    out["chain"] = list(sign(request, metadata=auth, timeout=60).cert_chain)
    request.metadata["ImpersonatedIdentity"] = "spiffe://forbidden"
    try:
        sign(request, metadata=auth, timeout=60)
    except grpc.RpcError as error:
        out["refused"] = [error.code().name, error.details()]
    report = channel.unary_unary("/meltemi.node.v1.NodeStatus/Report",
                                 request_serializer=node.NodeReport.SerializeToString,
                                 response_deserializer=node.NodeReportAck.FromString)
    report(node.NodeReport(node="node-9"), metadata=auth, timeout=60)
    try:
        report(node.NodeReport(node="node-9"), timeout=60)
    except grpc.RpcError as error:
        out["report_without_token"] = error.code().name
print(json.dumps(out, sort_keys=True), flush=True)
# All is said. The interpreter's own end is left out: on a loaded machine grpcio may then wait for ever
# for one of its threads that is gone.
os._exit(0)
