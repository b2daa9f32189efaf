"""Saved ComfyUI workflows without ComfyUI: reading, checking, converting and running them.

It lives in the engine's package, not beside the JSON files in ``workflows/``: the ``tops`` command needs it wherever
the wheel is installed, and a wheel must not put a module called ``workflows`` on anyone's path.
"""
