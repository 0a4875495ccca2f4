"""The commands of wanpipe, one module each. Python code can import and call them.

`COMMANDS` lists them. `wanpipe.app` loads a module only when its command is called.
"""

COMMANDS = {
    "download": "stages.download",
    "convert": "stages.convert",
    "encode-text": "stages.encode_text",
    "encode-image": "stages.encode_image",
    "encode-video": "stages.encode_video",
    "denoise": "stages.denoise",
    "decode": "stages.decode",
    "run": "stages.run",
    "preview": "stages.preview",
    "show": "stages.show",
    "log": "stages.log",
    "gallery": "stages.gallery",
    "cache": "stages.cache",
    "sweep": "stages.sweep",
    "worker": "stages.worker",
    "demo": "stages.demo",
    "doctor": "stages.doctor",
}
