"""The verbs of wanpipe: one module per command, each importable without click's command line.

`COMMANDS` is the one list of them; `wanpipe.app` loads a stage only when it is called.
"""

COMMANDS = {
    "convert": "stages.convert",
    "encode-text": "stages.encode_text",
    "encode-image": "stages.encode_image",
    "denoise": "stages.denoise",
    "decode": "stages.decode",
    "run": "stages.run",
    "preview": "stages.preview",
    "show": "stages.show",
    "log": "stages.log",
    "cache": "stages.cache",
    "demo": "stages.demo",
}
