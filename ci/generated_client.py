"""Talks to a daemon through a client that was generated from its OpenAPI document.

usage: generated_client.py CONTROL_SOCKET

Part `api` of ci/soak generates the client and starts the daemon, with examples/mediated.toml.
"""

import sys

import httpx
from vfiod_control_api_client import Client
from vfiod_control_api_client.api.daemon import daemon
from vfiod_control_api_client.api.devices import device, devices
from vfiod_control_api_client.api.instances import create, instance, instances, remove
from vfiod_control_api_client.api.parents import parents, types
from vfiod_control_api_client.models import Create, CreateResponseDefault

[socket] = sys.argv[1:]
client = Client(
    base_url="http://vfiod",
    httpx_args={"transport": httpx.HTTPTransport(uds=socket)},
)

print("daemon", daemon.sync(client=client).version)
names = [found.name for found in devices.sync(client=client)]
print("devices", names)
for name in names:
    assert device.sync(name, client=client).name == name

before = instances.sync(client=client)
parent = parents.sync(client=client)[0].name
kind = next(kind for kind in types.sync(client=client) if kind.parent == parent)
made = create.sync(client=client, body=Create(parent=parent, type_=kind.type_))
assert not isinstance(made, CreateResponseDefault), made
assert instance.sync(made.uuid, client=client).uuid == made.uuid
assert len(instances.sync(client=client)) == len(before) + 1
refused = create.sync(client=client, body=Create(parent=parent, type_=kind.type_, uuid=made.uuid))
assert isinstance(refused, CreateResponseDefault) and refused.errno == "EEXIST", refused
assert remove.sync_detailed(made.uuid, client=client).status_code == 204
assert len(instances.sync(client=client)) == len(before)
print("instance", made.uuid, "of", parent, kind.type_, "was created, shown and removed")
