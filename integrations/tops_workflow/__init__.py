"""Read, check, convert and run saved ComfyUI workflows without ComfyUI.

:mod:`tops_workflow.host` is the contract between a node and whatever runs it: ComfyUI, TOPS Studio or `tops workflow`.
"""
