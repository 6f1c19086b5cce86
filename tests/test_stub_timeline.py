"""Traces of sessions, read by protobuf's own parser with the fields of Perfetto's perfetto_trace.proto."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from helpers.stub_tinker.timeline import KEPT, Timeline

FIELDS = {  # by message: (number, type or message, repeated)
    "Trace": {"packet": (1, "TracePacket", True)},
    "TracePacket": {
        "timestamp": (8, "uint64", False),
        "sequence": (10, "uint32", False),
        "track_event": (11, "TrackEvent", False),
        "track_descriptor": (60, "TrackDescriptor", False),
    },
    "TrackDescriptor": {"uuid": (1, "uint64", False), "name": (2, "string", False)},
    "TrackEvent": {
        "debug_annotations": (4, "DebugAnnotation", True),
        "type": (9, "uint32", False),
        "track_uuid": (11, "uint64", False),
        "name": (23, "string", False),
    },
    "DebugAnnotation": {"uint_value": (3, "uint64", False), "name": (10, "string", False)},
}


def parsed(trace: bytes):
    file = descriptor_pb2.FileDescriptorProto(name="trace.proto", package="p", syntax="proto2")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            own = described.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in FIELDS:
                own.type, own.type_name = own.TYPE_MESSAGE, f".p.{kind}"
            else:
                own.type = getattr(own, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("p.Trace"))
    return kind.FromString(trace)


def test_a_trace_has_a_slice_for_each_request_and_none_overlap_on_a_track():
    timeline = Timeline()
    for name, begun, ended in (("a", 20, 50), ("b", 50, 300), ("c", 40, 60), ("never done", 10, 0)):
        noted = timeline.note("owner", "s", "run:train:0", name)
        noted.asked, noted.begun, noted.ended = 10, begun * 10**6, ended * 10**6
    timeline.note("owner", "another", "t", "x").end()
    timeline.note("someone", "s", "t", "y").end()
    tracks: dict[int, str] = {}
    said: dict[str, list] = {}
    for packet in parsed(timeline.trace("owner", "s")).packet:
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name
        else:
            event = packet.track_event
            waited = [note.uint_value for note in event.debug_annotations if note.name == "waited_ms"]
            row = (packet.timestamp // 10**6, event.type, event.name, waited)
            said.setdefault(tracks[event.track_uuid], []).append(row)
    assert said == {
        "run:train:0 001": [(20, 1, "a", [19]), (50, 2, "", []), (50, 1, "b", [49]), (300, 2, "", [])],
        "run:train:0 002": [(40, 1, "c", [39]), (60, 2, "", [])],
    }


def test_a_key_keeps_its_latest_requests():
    timeline = Timeline()
    for number in range(KEPT + 5):
        timeline.note("owner", "early" if number < 5 else "late", "t", "r").end()
    assert timeline.trace("owner", "early") == b"" and timeline.trace("owner", "late")
