"""A device in ten lines: a microphone or a recording, with the encoder of a server or of a bundle.

python examples/device_in_ten_lines.py mic nats://gateway:4222
python examples/device_in_ten_lines.py rain.flac bundle/ [head.json]
"""

import sys

import runtime_edge

source, where, *head = sys.argv[1:]
settings: runtime_edge.RunSettings = {"broker": where} if "://" in where else {"bundle": where, "realtime": False}
if head:
    settings["head"] = head[0]
report = runtime_edge.run(source, lambda result: print(result.window, result.finished, result.detected), **settings)
print(report["windows_captured"], "windows")
