"""A child in Python, of the standard library alone: it speaks the frames of frame.rs."""

import array
import mmap
import os
import socket
import struct

FRAME = struct.Struct("<4sIQIIQQQQ8x")
START, BATCH, EXIT, BUILDING, WARMING_UP, READY, OUTPUTS, FAILED = 1, 2, 3, 16, 17, 18, 20, 22

parent = socket.socket(fileno=os.dup(0))
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
data, [arena], _, _ = socket.recv_fds(parent, FRAME.size, 1)
_, kind, _, _, _, offset, length, _, _ = FRAME.unpack(data)
assert kind == START
view = mmap.mmap(arena, os.fstat(arena).st_size)
payload = view[offset : offset + length]


def say(kind: int, sequence: int = 0, count: int = 0, length: int = 0) -> None:
    parent.sendall(FRAME.pack(b"1LN1", kind, sequence, count, 1, 0, length, 0, 0))


def write(reply: bytes) -> None:
    global view
    if len(reply) > len(view):
        os.ftruncate(arena, len(reply))
        view = mmap.mmap(arena, len(reply))
    view[: len(reply)] = reply


say(BUILDING)
say(WARMING_UP)
say(READY)
while data := parent.recv(FRAME.size, socket.MSG_WAITALL):
    _, kind, sequence, count, _, offset, length, _, _ = FRAME.unpack(data)
    if kind == EXIT:
        break
    if offset + length > len(view):
        view = mmap.mmap(arena, os.fstat(arena).st_size)
    requests, at, replies, failed = view[offset : offset + length], 0, [], False
    for _ in range(count):
        (act_length,) = struct.unpack_from("<Q", requests, at)
        act = requests[at + 8]
        value, floats = struct.unpack_from("<QQ", requests, at + 8 + act_length)
        at += 24 + act_length
        numbers = array.array("f", requests[at : at + 4 * floats])
        at += 4 * floats
        if act == 2:
            os.abort()
        failed = failed or act == 7
        doubled = array.array("f", (2 * x for x in numbers))
        replies.append(struct.pack("<QQ", value, floats) + doubled.tobytes())
    if failed:
        text = b"failed " + payload
        reply = struct.pack("<Q", len(text)) + text + struct.pack("<Q", 0)
        write(reply)
        say(FAILED, sequence, 0, len(reply))
    else:
        reply = b"".join(replies)
        write(reply)
        say(OUTPUTS, sequence, count, len(reply))
