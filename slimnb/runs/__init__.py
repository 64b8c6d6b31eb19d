"""The run store: durable, resumable, checked; nothing in it is ever unpickled."""
