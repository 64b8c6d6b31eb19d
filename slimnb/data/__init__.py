"""Images: where they come from, how they are cached, batched and augmented on the device."""
