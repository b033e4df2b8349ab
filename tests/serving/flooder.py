"""A process that sends frames as fast as it can: `python flooder.py`, its orders on stdin.

It says HELLO first (the first frame), then the others again and again, hangs up and dials again as
often as it is told to. What is heard is thrown away. It prints how many frames it sent.
"""

import json
import sys
import time

import zmq


def main() -> None:
    orders = json.load(sys.stdin)
    hello, *frames = (bytes.fromhex(frame) for frame in orders["frames"])
    context = zmq.Context()
    ends = time.monotonic() + orders["seconds"]
    sent = 0
    while time.monotonic() < ends:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.curve_publickey = orders["public"].encode()
        socket.curve_secretkey = orders["secret"].encode()
        socket.curve_serverkey = orders["server"].encode()
        socket.connect(orders["address"])
        socket.send(hello)
        for number in range(orders["frames_a_connection"]):
            if time.monotonic() >= ends:
                break
            if socket.poll(1, zmq.POLLOUT):
                socket.send(frames[number % len(frames)])
                sent += 1
            while socket.poll(0):
                socket.recv()
        socket.close()
    context.destroy(linger=0)
    print(sent)


main()
