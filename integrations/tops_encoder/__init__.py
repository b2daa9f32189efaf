"""An HTTP service that encodes and prunes pictures for servers that run only the language model.

``tops encode-server MODEL`` starts it; :class:`tops_engine.remote.encoder_client.EncoderClient` asks it.
"""
