"""Messages and the functions a model may call."""
