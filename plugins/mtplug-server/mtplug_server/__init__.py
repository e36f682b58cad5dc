"""mtplug-server: translations over HTTP, of requests that arrive together in one batch."""
