"""TOPS Studio: the official ComfyUI frontend with our nodes, without ComfyUI.

Studio is a small host for our nodes: it implements the part of ComfyUI's HTTP and websocket interface that the frontend
uses, and runs graphs with the embedded runner (:mod:`tops_workflow`). Diffusion graphs need ComfyUI.
"""
