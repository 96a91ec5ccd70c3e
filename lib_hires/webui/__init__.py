"""HiRes Guidance inside the AUTOMATIC1111 WebUI: the only place that imports `modules`."""
